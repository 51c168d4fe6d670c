"""Attacks on what explains: functions of tokens, `GradELLM`, the pipeline, the configuration."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch
from torch import nn
from transformers import GenerationConfig, StoppingCriteria, pipeline

from gradellm_hf import (
    ExplainedTextGenerationPipeline,
    GradELLM,
    GradELLMConfig,
    HeadWeights,
    explain_generate,
    explain_sequences,
    explain_stream,
    register_pipeline,
    verify,
)

from .outcomes import Attack, Judge, as_in, missing, refused, works, works_or
from .world import NAN, World, close, explained, padded

_Call = Callable[[], Any]
_IMAGE = [{"role": "user", "content": [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "What is it?"}]}]


class _Later(dict[str, Any]):
    """Options of a configuration that may be refused when it is made, or when it is used."""


def _made(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: GradELLMConfig(**value) if isinstance(value, _Later) else value for name, value in kwargs.items()}


class _RowStops(StoppingCriteria):
    """Ends the first row after one token."""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.arange(len(input_ids)) == 0


def attacks(world: World) -> Iterator[Attack]:
    for surface, calls in (
        ("explain_generate", _generate(world)),
        ("explain_sequences", _sequences(world)),
        ("explain_stream", _stream(world)),
        ("verify", _verify(world)),
        ("GradELLM", _wrapper(world)),
        ("GradELLMConfig", _config(world)),
        ("pipeline", _pipeline(world)),
    ):
        yield from (Attack(surface, name, call, judge) for name, call, judge in calls)


def _bad_prompts(world: World) -> dict[str, tuple[dict[str, Any], tuple[str, ...]]]:
    """Arguments that no call of `generate` can be explained with, and what the error speaks of."""
    ids, ones = world.prompt, torch.ones_like(world.prompt)
    hole = ones.clone()
    hole[0, -1] = 0
    return {
        "ids of one dimension": ({"inputs": ids[0]}, ("shape",)),
        "ids of three dimensions": ({"inputs": ids[None]}, ("shape",)),
        "ids as a list": ({"inputs": ids.tolist()}, ("list",)),
        "ids as floats": ({"inputs": ids.float()}, ("float32",)),
        "ids as bools": ({"inputs": ids > 9}, ("bool",)),
        "a text": ({"inputs": "Rome"}, ("str",)),
        "what a tokenizer returns": ({"inputs": world.tokenizer("Rome", return_tensors="pt")}, ("Unpack",)),
        "an empty prompt": ({"inputs": ids[:, :0]}, ("empty",)),
        "no rows": ({"inputs": ids[:0]}, ("shape", "rows")),
        "an id out of the vocabulary": ({"inputs": ids + 400}, ("token",)),
        "a negative id": ({"inputs": ids - 400}, ("token",)),
        "padding on the right": ({"inputs": ids, "attention_mask": hole}, ("padding",)),
        "a mask of other rows": ({"inputs": ids, "attention_mask": ones.repeat(3, 1)}, ("attention_mask",)),
        "a mask too short": ({"inputs": ids, "attention_mask": ones[:, :3]}, ("attention_mask",)),
        "a mask too long": ({"inputs": ids, "attention_mask": torch.ones(1, 9).long()}, ("attention_mask", "cache")),
        "a mask as a list": ({"inputs": ids, "attention_mask": [[1] * 5]}, ("attention_mask",)),
        "a mask of one dimension": ({"inputs": ids, "attention_mask": ones[0]}, ("attention_mask",)),
        "a mask of halves": ({"inputs": ids, "attention_mask": ones * 0.5}, ("attention_mask",)),
        "a mask of twos": ({"inputs": ids, "attention_mask": ones * 2}, ("attention_mask",)),
        "a mask below 0": ({"inputs": ids, "attention_mask": -ones}, ("attention_mask",)),
        "a mask of NaN": ({"inputs": ids, "attention_mask": ones * NAN}, ("attention_mask",)),
        "a mask of zeros": ({"inputs": ids, "attention_mask": ones * 0}, ("padding",)),
        "embeddings of two dimensions": ({"inputs_embeds": torch.zeros(1, 48)}, ("inputs_embeds",)),
        "embeddings of no position": ({"inputs_embeds": torch.zeros(1, 0, 48)}, ("empty",)),
        "embeddings of NaN": ({"inputs_embeds": torch.full((1, 4, 48), NAN)}, ("NaN",)),
        "a configuration's name": ({"inputs": ids, "explain_config": "paper"}, ("explain_config",)),
        "a configuration as a dict": ({"inputs": ids, "explain_config": {"layers": 1}}, ("explain_config",)),
        "an empty dict as configuration": ({"inputs": ids, "explain_config": {}}, ("explain_config",)),
        "a configuration's class": ({"inputs": ids, "explain_config": GradELLMConfig}, ("explain_config",)),
        "more layers than there are": ({"inputs": ids, "explain_config": GradELLMConfig(layers=9)}, ("layers",)),
        "a layer that is not there": ({"inputs": ids, "explain_config": GradELLMConfig(layers=[-9])}, ("layers",)),
        "a generation configuration as text": ({"inputs": ids, "generation_config": "greedy"}, ("generation_config",)),
        "a generation configuration as a dict": ({"inputs": ids, "generation_config": {"a": 1}}, ("generation_config",)),
        "a paged cache": ({"inputs": ids, "cache_implementation": "paged"}, ("paged",)),
        "token healing": ({"inputs": ids, "token_healing": True}, ("token_healing",)),
        "an adapter a row": ({"inputs": ids, "adapter_names": ["a"]}, ("adapter_names",)),
        "the paper's preset, heads too narrow": ({"inputs": ids, "explain_config": GradELLMConfig.paper()}, ("H * D",)),
        "a foil out of the vocabulary": (_contrast(ids, 400), ("contrast_token_ids",)),
        "a foil below 0": (_contrast(ids, -1), ("contrast_token_ids",)),
        "a foil that is no id": (_contrast(ids, 1.5), ("contrast_token_ids",)),
        "foils of another shape": (_contrast(ids, [[1, 2, 3, 4, 5, 6, 7]] * 2), ("contrast_token_ids",)),
        "the token itself as foil": (_contrast(ids, int(world.text[0, 5])), ("contrast_token_ids", "foil")),
        "a target without a gradient": (_target(ids, lambda logits, token_ids: token_ids.float()), ("target",)),
        "a target of another shape": (_target(ids, lambda logits, token_ids: logits), ("target",)),
        "a target of NaN": (_target(ids, lambda logits, token_ids: logits.sum(-1) * NAN), ("target", "NaN")),
        "a target of None": (_target(ids, lambda logits, token_ids: None), ("target",)),
    }


def _contrast(ids: Any, foil: Any) -> dict[str, Any]:
    return {"inputs": ids, "explain_config": _Later(target="contrast", contrast_token_ids=foil)}


def _target(ids: Any, target: Any) -> dict[str, Any]:
    return {"inputs": ids, "explain_config": _Later(target=target)}


def _bad_models(world: World, call: Callable[..., Any]) -> Iterator[tuple[str, _Call, Judge]]:
    for name, thing in {"None": None, "a name": "our/llama", "a module": nn.Linear(2, 3), "a class": type(world.model)}.items():
        yield f"{name} as model", functools.partial(call, thing), refused("model")
    yield "an encoder-decoder model", functools.partial(call, world.t5), refused("encoder-decoder")
    yield "a model in training mode", functools.partial(call, world.training), refused("training mode")
    yield "weights of NaN", functools.partial(call, world.with_nan), refused("NaN")


def _generate(world: World) -> Iterator[tuple[str, _Call, Judge]]:
    model, ids = world.model, world.prompt

    def explain(inputs: Any = None, **kwargs: Any) -> Any:
        return explain_generate(model, inputs, **{"max_new_tokens": 3, "do_sample": False, **_made(kwargs)})

    for name, (kwargs, words) in _bad_prompts(world).items():
        yield name, functools.partial(explain, **kwargs), refused(*words)
    yield from _bad_models(world, lambda thing: explain_generate(thing, ids, max_new_tokens=2))
    yield "no model", lambda: explain_generate(), missing("model")
    own: dict[str, dict[str, Any]] = {  # what `generate` itself refuses
        "no new tokens": {"max_new_tokens": 0},
        "fewer than no new tokens": {"max_new_tokens": -1},
        "new tokens as text": {"max_new_tokens": "3"},
        "an unknown option": {"max_new_token": 3},
        "no beams": {"num_beams": 0},
        "two sequences, one way": {"num_return_sequences": 2},
        "a temperature of 0": {"do_sample": True, "temperature": 0.0},
        "a temperature of NaN": {"do_sample": True, "temperature": NAN},
        "a prompt twice": {"input_ids": ids},
        "stop strings without a tokenizer": {"stop_strings": ["a"]},
        "a streamer that is none": {"streamer": 5},
        "a processor that is none": {"logits_processor": [5]},
        "embeddings of another width": {"inputs_embeds": torch.zeros(1, 5, 47)},
    }
    for name, kwargs in own.items():
        yield name, functools.partial(explain, ids, **kwargs), as_in(world.generate(ids, **kwargs), *kwargs)
    too_long = torch.ones(1, 60, dtype=torch.long)
    yield "more than the learned positions", lambda: explain_generate(world.gpt2, too_long, max_new_tokens=9), refused("64")
    yield "no prompt", explain, works(lambda out: close(out.sequences, model.generate(max_new_tokens=3, do_sample=False)))
    yield "ids of int32", lambda: explain(ids.int()), works(world.same_heatmaps)
    yield "in inference mode", lambda: torch.inference_mode()(explain)(ids), works(world.same_heatmaps)
    yield "large chunks", lambda: explain(ids, explain_config=GradELLMConfig(step_chunk_size=10**9)), works(world.same_heatmaps)
    mask = torch.ones_like(ids)
    yield "a mask of bools", lambda: explain(ids, attention_mask=mask.bool()), works(world.same_heatmaps)
    yield "a mask of floats", lambda: explain(ids, attention_mask=mask.float()), works(world.same_heatmaps)
    yield (
        "an empty generation configuration",
        lambda: explain(ids, generation_config=GenerationConfig(max_new_tokens=3)),
        works(world.same_heatmaps),
    )
    yield (
        "a row that its own criterion ends, padding as end of sequence",
        lambda: explain(**padded(world), stopping_criteria=[_RowStops()], pad_token_id=2, eos_token_id=2),
        works(lambda out: out.step_mask.tolist() == [[True, False, False], [True, True, True]]),
    )
    yield (
        "a row that its own criterion ends, without an end of sequence, so that `generate` goes on filling it",
        lambda: explain(**padded(world), stopping_criteria=[_RowStops()], pad_token_id=0),
        works(  # `generate` counts the row as ended: what fills it up is no part of it, as if padding filled it
            lambda out: (
                out.step_mask.tolist() == [[True, False, False], [True, True, True]]
                and close(out.attributions[:1, :1], world.out.attributions[:, :1])
            )
        ),
    )
    yield (
        "a batch with padding",
        lambda: explain(**padded(world)),
        works(lambda out: close(out.attributions[:1], world.out.attributions) and not out.attributions[1, :, :2].any()),
    )


def _sequences(world: World) -> Iterator[tuple[str, _Call, Judge]]:
    text = world.text
    ones = torch.ones_like(text)
    hole = ones.clone()
    hole[0, 4] = 0

    def explain(sequences: Any = text, prompt_length: Any = 5, mask: Any = None, **kwargs: Any) -> Any:
        return explain_sequences(world.model, sequences, prompt_length, mask, **kwargs)

    for name, sequences in {
        "ids of one dimension": text[0],
        "ids as a list": text.tolist(),
        "ids as floats": text.float(),
        "ids of uint8": text.clamp(0, 200).to(torch.uint8),
        "a text": "Rome",
        "None": None,
        "no rows": text[:0],
        "an id out of the vocabulary": text + 400,
        "a negative id": text - 400,
    }.items():
        yield name, functools.partial(explain, sequences), refused("sequences", "token")
    for length in (0, -1, 9, 2.0, "3", None, True, torch.tensor(5), NAN, [5]):
        yield f"a prompt length of {length!r}", functools.partial(explain, text, length), refused("prompt_length")
    for name, mask in {
        "a mask as a list": ones.tolist(),
        "a mask of another length": ones[:, :3],
        "a mask of other rows": ones.repeat(2, 1),
        "a mask of one dimension": ones[0],
        "a mask of halves": ones * 0.5,
        "a mask of twos": ones * 2,
        "a mask of NaN": ones * NAN,
        "a mask below 0": -ones,
        "a mask of zeros": ones * 0,
        "padding on the right": hole,
        "a mask as text": "1" * 8,
    }.items():
        yield name, functools.partial(explain, text, 5, mask), refused("attention_mask", "padding")
    for config in ("paper", {}, 5, GradELLMConfig):
        yield f"{config!r} as configuration", functools.partial(explain, explain_config=config), refused("explain_config")
    yield from _bad_models(world, lambda thing: explain_sequences(thing, text, 5))
    yield "no prompt length", lambda: explain_sequences(world.model, text), missing("prompt_length")
    yield "an unknown argument", lambda: explain(layers=3), missing("layers")
    yield (
        "nothing after the prompt",
        lambda: explain(text, 8),
        works_or(lambda out: out.attributions.shape == (1, 0, 8), "prompt"),
    )
    yield "ids of int32", lambda: explain(text.int()), works(world.same_heatmaps)
    yield "a prompt length of NumPy", lambda: explain(text, numpy.int64(5)), works(world.same_heatmaps)
    yield "a mask of bools", lambda: explain(text, 5, ones.bool()), works(world.same_heatmaps)
    yield "a mask of floats", lambda: explain(text, 5, ones.float()), works(world.same_heatmaps)
    yield "the stepwise engine", lambda: explained(world), works(lambda scores: close(scores, world.out.attributions))
    ended = ones.clone()
    ended[0, 6:] = 0
    yield (
        "a row that ends early",
        lambda: explain(text, 5, ended),
        works(lambda out: close(out.attributions[:, :1], world.out.attributions[:, :1]) and not out.attributions[:, 1:].any()),
    )


def _stream(world: World) -> Iterator[tuple[str, _Call, Judge]]:
    def explain(**kwargs: Any) -> Any:
        return list(explain_stream(world.model, **{"max_new_tokens": 3, "do_sample": False, **_made(kwargs)}))

    for name, (kwargs, words) in _bad_prompts(world).items():
        yield name, functools.partial(explain, **kwargs), refused(*words)
    yield from _bad_models(world, lambda thing: list(explain_stream(thing, world.prompt, max_new_tokens=2)))
    yield "beams", lambda: explain(inputs=world.prompt, num_beams=2), refused("beam")
    yield (
        "no new tokens",
        lambda: explain(inputs=world.prompt, max_new_tokens=0),
        as_in(world.generate(world.prompt, max_new_tokens=0)),
    )
    yield (
        "more than the learned positions",
        lambda: list(explain_stream(world.gpt2, torch.ones(1, 60, dtype=torch.long), max_new_tokens=9)),
        refused("64"),
    )

    def same(steps: Any) -> bool:
        expected = world.out.attributions[0]
        return len(steps) == 3 and all(close(step.attributions[0], expected[n, : 5 + n]) for n, step in enumerate(steps))

    yield "a good prompt", lambda: explain(inputs=world.prompt), works(same)
    yield (
        "a streamer that is none",
        lambda: explain(inputs=world.prompt, streamer=5),
        refused("put", "streamer", types=(Exception,)),
    )


def _verify(world: World) -> Iterator[tuple[str, _Call, Judge]]:
    model = world.model
    yield from _bad_models(world, verify)
    for name in ("prompt_length", "num_steps"):
        for value in (0, -1, 1.5, "3", None, NAN, True):
            yield f"{name}={value!r}", functools.partial(verify, model, **{name: value}), refused(name)
    for value in ("x", 1.5, None, NAN, 2**70):
        yield f"seed={value!r}", functools.partial(verify, model, seed=value), refused("seed")
    yield "an unknown argument", lambda: verify(model, tolerance=1), missing("tolerance")
    yield "more than the learned positions", lambda: verify(world.gpt2, prompt_length=60, num_steps=9), refused("64")
    yield "a good model", lambda: verify(model), works(lambda error: 0 < error < 1e-4)
    yield "one step", lambda: verify(model, prompt_length=1, num_steps=1), works(lambda error: 0 <= error < 1e-4)


def _wrapper(world: World) -> Iterator[tuple[str, _Call, Judge]]:
    wrapped, model, tokenizer = world.wrapped, world.model, world.tokenizer

    def explain(text: Any, target: Any = None, **kwargs: Any) -> Any:
        return wrapped.explain(text, target, **kwargs)

    for name, text in {
        "an empty text": "",
        "no prompts": [],
        "None": None,
        "a number": 5,
        "an empty text among others": ["Rome", ""],
        "a number among texts": ["Rome", 3],
        "a chat without messages": [[]],
        "an empty dict": {},
        "a message that is not in a list": {"role": "user", "content": "Rome"},
        "bytes": b"Rome",
        "a generator": (text for text in ["Rome"]),
        "token ids": world.prompt,
        "half a character": "Rome \ud800",
        "a message without content": [{"role": "user"}],
        "a message without a role": [{"content": "Rome"}],
        "a message of None": [{"role": "user", "content": None}],
        "a message of a number": [{"role": "user", "content": 5}],
        "a picture": _IMAGE,
    }.items():
        words = ("text", "prompt", "chat", "message", "content", "image", "role")
        yield name, functools.partial(explain, text, max_new_tokens=2), refused(*words)
    for target in ("", [], ["a", "b"], 5, [""], [None], b"a", {"a": 1}, "\ud800"):
        yield f"{target!r} as target", functools.partial(explain, "Rome is", target), refused("target")
    yield "a target, and new tokens", lambda: explain("Rome is", " old", max_new_tokens=3), refused("max_new_tokens")
    yield (
        "a target with the end of a message in it",
        lambda: explain("Rome is", " old</s> and <|im_start|>big"),
        works(lambda e: e.text.endswith(" old</s> and <|im_start|>big") and e.text[: len("Rome is")] == "Rome is"),
    )
    yield "no text", lambda: wrapped.explain(), missing("text")
    yield "no tokenizer", lambda: GradELLM(model).explain("Rome", max_new_tokens=2), refused("tokenizer")
    yield "a tokenizer's name", lambda: GradELLM(model, "gpt2").explain("Rome", max_new_tokens=2), refused("tokenizer")
    yield (
        "no chat template",
        lambda: _without_template(world).explain([{"role": "user", "content": "a"}]),
        refused("template"),
    )
    yield (
        "the tokenizer of another model",
        lambda: GradELLM(world.gpt2, tokenizer).explain("Rome is", max_new_tokens=2),
        refused("tokenizer"),
    )
    for config in ("paper", {}, 5, GradELLMConfig):
        yield f"{config!r} as configuration", functools.partial(GradELLM, model, tokenizer, config), refused("config")
        call = functools.partial(explain, "Rome", max_new_tokens=2, explain_config=config)
        yield f"{config!r} as a call's configuration", call, refused("explain_config", "config")
    yield (
        "ids beside a text",
        lambda: explain("Rome", input_ids=world.prompt),
        refused("input_ids", types=(TypeError, ValueError)),
    )
    yield "an attribute that no one has", lambda: wrapped.no_such_thing, refused("no_such_thing", types=(AttributeError,))
    yield "no such model", lambda: GradELLM.from_pretrained(world.folder / "none"), refused("none", types=(OSError, ValueError))
    yield (
        "a folder without a model",
        lambda: GradELLM.from_pretrained(world.folder),
        refused("config.json", types=(OSError, ValueError)),
    )
    yield "no name", lambda: GradELLM.from_pretrained(), missing("name")
    yield (
        "a tuple of prompts",
        lambda: explain(("Rome is", "Rome was"), max_new_tokens=2, do_sample=False),
        works(lambda found: [e.text[:7] for e in found] == ["Rome is", "Rome wa"]),
    )
    yield (
        "several sequences",
        lambda: explain("Rome is", max_new_tokens=2, do_sample=True, num_return_sequences=3),
        works(lambda found: len(found) == 3),
    )
    yield "a model of NaN", lambda: GradELLM(world.with_nan, tokenizer).explain("Rome", " is"), refused("NaN")
    yield "None as model", lambda: GradELLM(None, tokenizer).explain("Rome", max_new_tokens=2), refused("model")


def _without_template(world: World) -> GradELLM:
    from tests.support.tiny_tokenizers import byte_level_bpe

    return GradELLM(world.model, byte_level_bpe())


def _config(world: World) -> Iterator[tuple[str, _Call, Judge]]:
    options: dict[str, tuple[Any, ...]] = {
        "layers": (
            "last",
            0,
            -2,
            [],
            [1.5],
            True,
            None,
            b"\x01",
            bytearray(b"\x01"),
            {1},
            1.0,
            [True],
            [[1]],
            ["1"],
            NAN,
            "1",
            {1: 2},
        ),
        "spatial": ("cosine", None, 5, b"attention", ["attention"]),
        "channel": ("queries", None, True),
        "target": ("entropy", None, 5, b"logit", ["logit"]),
        "positive_only": (1, "yes", None),
        "engine": ("fast", None, ["replay"]),
        "output_layer_attributions": ("yes", 1, None),
        "step_chunk_size": (0, -1, 2.0, "2", True, NAN, [1]),
        "positive_part": ("group", None, True),
        "head_weights": (5, b"weights", [[1.0]], {}, "", NAN, torch.ones(5, 6)),
        "contrast_token_ids": (5, [1]),
    }
    for name, values in options.items():
        for value in values:
            yield f"{name}={value!r}", functools.partial(GradELLMConfig, **{name: value}), refused(name)
    for value in ("x", [[1, 2], [3]], {1: 2}, NAN, [None], True, b"\x01", []):
        call = functools.partial(GradELLMConfig, target="contrast", contrast_token_ids=value)
        yield f"contrast_token_ids={value!r}", functools.partial(_used, world, call), refused("contrast_token_ids")
    yield "contrast without a foil", lambda: GradELLMConfig(target="contrast"), refused("contrast_token_ids")
    for value in (HeadWeights(torch.ones(2, 2), "magnitude", "llama"), HeadWeights(torch.ones(9, 9), "contribution", "gpt2")):
        call = functools.partial(_used, world, functools.partial(GradELLMConfig, head_weights=value))
        yield f"{value!r}", call, refused("head_weights")
    yield "an unknown option", lambda: GradELLMConfig(layer=1), missing("layer")
    yield "an unknown option of the preset", lambda: GradELLMConfig.paper(layer=1), missing("layer")
    for text in ("", "{", "[]", "3", "null", '"a"', '{"layer": 1}', '{"layers": 0}', "[" * 100_000, '{"layers": 1e999}'):
        yield (
            f"the JSON {text[:20]}",
            functools.partial(GradELLMConfig.from_json, text),
            refused("JSON", "GradELLMConfig", "layers"),
        )
    for value in (None, 5, [("layers", 1)], "layers", {"layers": 0}, {1: 2}, {"target": "callable:f"}):
        call = functools.partial(GradELLMConfig.from_dict, value)
        yield f"from_dict({value!r})", call, refused("GradELLMConfig", "layers", "target", "dict")
    for number in (0, -1, 1.5, "5", None):
        call = functools.partial(GradELLMConfig(layers=2).layer_indices, number)
        yield f"layer_indices({number!r})", call, refused("num_layers", "layers")
    for value, expected in ((numpy.int64(2), [3, 4]), (range(3), [0, 1, 2]), ([1, 1, -4], [1]), ((0,), [0])):
        call = functools.partial(lambda value: GradELLMConfig(layers=value).layer_indices(5), value)
        yield f"layers={value!r}", call, works(expected.__eq__)
    array = numpy.array([1, 2])
    yield (
        "layers as an array",
        lambda: GradELLMConfig(layers=array).layer_indices(5),
        works_or([1, 2].__eq__, "layers"),
    )
    config = GradELLMConfig(layers=[0, -1], spatial="loosened", output_layer_attributions=True, step_chunk_size=3)
    yield "to JSON and back", lambda: GradELLMConfig.from_json(config.to_json()), works(config.__eq__)


def _used(world: World, make: Callable[[], Any]) -> Any:
    """A configuration may wait with what depends on the model; then its use must refuse it."""
    return explain_sequences(world.model, world.text, 5, explain_config=make())


def _pipeline(world: World) -> Iterator[tuple[str, _Call, Judge]]:
    generator = ExplainedTextGenerationPipeline(model=world.model, tokenizer=world.tokenizer)

    def explain(prompt: Any = "Rome is", **kwargs: Any) -> Any:
        return generator(prompt, **{"max_new_tokens": 2, "do_sample": False, **kwargs})

    for config in ("paper", {}, 5):
        yield f"{config!r} as configuration", functools.partial(explain, explain_config=config), refused("explain_config")
        call = functools.partial(
            ExplainedTextGenerationPipeline, model=world.model, tokenizer=world.tokenizer, explain_config=config
        )
        yield (
            f"{config!r} as the pipeline's configuration",
            lambda call=call: call()("Rome is", max_new_tokens=2),
            refused("explain_config"),
        )
    yield "a model in training mode", lambda: _in_training(world), refused("training mode")
    yield (
        "an encoder-decoder model",
        lambda: ExplainedTextGenerationPipeline(model=world.t5, tokenizer=world.tokenizer)("a"),
        refused("encoder"),
    )
    yield "layers out of range", lambda: explain(explain_config=GradELLMConfig(layers=9)), refused("layers")
    plain = pipeline("text-generation", model=world.model, tokenizer=world.tokenizer)
    expected = plain("Rome is", max_new_tokens=2, do_sample=False)[0]["generated_text"]
    yield "a good prompt", explain, works(lambda found: found[0]["generated_text"] == found[0]["explanation"].text == expected)
    yield (
        "only what is new",
        lambda: explain(return_full_text=False),
        works(lambda found: "Rome is" + found[0]["generated_text"] == expected),
    )
    for prompt in ("", [""], ["Rome", ""]):
        call = functools.partial(explain, prompt)
        yield (
            f"{prompt!r} as prompt",
            call,
            works(functools.partial(_same_texts, plain(prompt, max_new_tokens=2, do_sample=False))),
        )
    register_pipeline()
    yield "registered twice", register_pipeline, works()


def _same_texts(expected: list[Any], found: list[Any]) -> bool:
    flat = [
        [record["generated_text"] for part in records for record in (part if isinstance(part, list) else [part])]
        for records in (expected, found)
    ]
    return flat[0] == flat[1]


def _in_training(world: World) -> Any:
    return ExplainedTextGenerationPipeline(model=world.training, tokenizer=world.tokenizer)("Rome is", max_new_tokens=2)
