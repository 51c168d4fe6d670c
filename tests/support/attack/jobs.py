"""Attacks on jobs over many prompts: `explain_dataset`, `evaluate`, its settings and its summary."""

import functools
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gradellm_hf import GradELLM, GradELLMConfig, GradELLMError, explain_dataset, load_dataset_explanations
from gradellm_hf.evaluation import Settings, evaluate, load_evaluation, merge, summarise
from tests.support.tiny_models import tiny_model

from .outcomes import Attack, Judge, missing, refused, works, works_or
from .world import NAN, World

_Call = Callable[[], Any]
_Calls = Iterator[tuple[str, _Call, Judge]]
_NUMBERS = (0, -1, 1.5, "3", True, NAN)
_PATHS = (OSError, GradELLMError)


def attacks(world: World) -> Iterator[Attack]:
    for surface, calls in (
        ("explain_dataset", _dataset(world)),
        ("evaluate", _evaluate(world)),
        ("evaluate", _settings()),
    ):
        yield from (Attack(surface, name, call, judge) for name, call, judge in calls)


def _dataset(world: World) -> _Calls:
    new = (world.folder / f"job {number}" for number in itertools.count())

    def explain(prompts: Any = ("Rome is", "Rome was"), folder: Any = None, **kwargs: Any) -> Any:
        model = kwargs.pop("model", world.wrapped)
        folder = next(new) if folder is None else folder
        return explain_dataset(model, prompts, folder, **{"max_new_tokens": 1, "do_sample": False, **kwargs})

    for prompts in ([], (), None, 5, {"prompt": "Rome"}, [""], ["", ""], [None], [5], [[]], [{}], [{"text": "Rome"}]):
        words = ("prompt", "empty")
        yield f"{prompts!r} as prompts", functools.partial(explain, prompts), refused(*words)
    for file in ("none.jsonl", "model/config.json", "model", "none"):
        yield f"prompts in {file}", functools.partial(explain, str(world.folder / file)), refused(file, "Prompts", types=_PATHS)
    for name in ("batch_size", "shard_size"):
        for value in _NUMBERS:
            yield f"{name}={value!r}", functools.partial(explain, **{name: value}), refused(name)
    for name, values in {
        "seed": (None, "a", 1.5, NAN, True),
        "score_dtype": ("float64", None, torch.float32, ["float32"]),
        "column": ("text", 5, ["prompt"]),
        "explain_config": ("paper", {}, 5, GradELLMConfig),
    }.items():
        for value in values:
            records = [{"prompt": "Rome is"}] if name == "column" else ["Rome is"]
            words = (name, "prompt in")
            yield f"{name}={value!r}", functools.partial(explain, records, **{name: value}), refused(*words)
    yield "layers out of range", lambda: explain(explain_config=GradELLMConfig(layers=9)), refused("layers")
    yield "no tokenizer", lambda: explain(model=world.model), refused("tokenizer")
    yield "a tokenizer's name", lambda: explain(model=world.model, tokenizer="gpt2"), refused("tokenizer")
    for name, model in {"None": None, "a name": "llama", "in training": world.training, "T5": world.t5}.items():
        call = functools.partial(explain, model=model, tokenizer=world.tokenizer)
        yield f"{name} as model", call, refused("model")
    yield "weights of NaN", lambda: explain(model=GradELLM(world.with_nan, world.tokenizer)), refused("NaN")
    yield "a file as folder", lambda: explain(folder=world.folder / "prompts.jsonl"), refused("prompts.jsonl", types=_PATHS)
    for value in (5, [], b"\x00"):
        call = functools.partial(explain, folder=value)
        yield f"{value!r} as folder", call, refused("output_dir", "path", "str", types=(GradELLMError, TypeError))
    yield "no folder", lambda: explain_dataset(world.wrapped, ["Rome"]), missing("output_dir")
    for option in ({"max_new_tokens": 0}, {"max_new_token": 3}, {"temperature": -1.0, "do_sample": True}):
        yield f"{option!r}", functools.partial(explain, **option), refused(*option)
    yield "a target", lambda: explain(target=" old"), refused("target")

    def failed(which: list[int], *words: str) -> Judge:
        """Right is that these prompts failed with errors of ours that have one of these words, and the others did not."""
        return works(
            lambda found: (
                list(found.errors) == which == [index for index, e in enumerate(found) if not e]
                and _all_ours(found.errors)
                and all(not words or any(word in error for word in words) for error in found.errors.values())
                and all(e.text.startswith("Rome") for e in found if e)
            )
        )

    bad = [
        "Rome is",
        "",
        5,
        None,
        {"text": "a"},
        [],
        [5],
        {"prompt": ["a", 5]},
        [{"role": "user", "content": None}],
        "Rome \ud800",
    ]
    yield "bad prompts among good ones", lambda: explain([*bad, "Rome was"]), failed(list(range(1, 10)))
    learned = GradELLM(tiny_model("gpt2", dtype=torch.float32, vocab_size=len(world.tokenizer)), world.tokenizer)
    long = "a b c d e f " * 40  # for learned positions: a model that computes them knows no longest prompt
    yield "a prompt too long among others", lambda: explain(["Rome is", long], model=learned), failed([1], "positions")
    yield "prompts of a generator", lambda: explain(f"Rome {n}" for n in range(3)), failed([])
    for value in (NAN, {1, 2}, b"a", object(), 10**30, {"a": {1: 2}}):
        records = [{"prompt": "Rome is", "id": value}, {"prompt": "Rome was", "id": "b"}]
        storable = isinstance(value, int | dict)
        judge = failed([] if storable else [0], "`id`")  # what no file can hold is the prompt's own error
        yield f"{type(value).__name__} {value!r:.20} as id", functools.partial(explain, records), judge
    done = world.folder / "done"
    explain(folder=done)
    for what, call in {
        "other prompts": functools.partial(explain, ["Rome"], done),
        "another seed": functools.partial(explain, folder=done, seed=1),
        "other layers": functools.partial(explain, folder=done, explain_config=GradELLMConfig(layers=1)),
        "more tokens": functools.partial(explain, folder=done, max_new_tokens=2),
    }.items():
        yield f"continued with {what}", call, refused("another job")
    yield "continued", lambda: explain(folder=done), failed([])
    yield "read again", lambda: load_dataset_explanations(done), failed([])
    for place in (99, -99, "a", 1.5, None):
        call = functools.partial(load_dataset_explanations(done).__getitem__, place)
        yield f"explanation {place!r}", call, refused("range", "index", "integer", types=(IndexError, TypeError, GradELLMError))
    for folder in (world.folder / "none", world.folder / "model", world.folder / "prompts.jsonl"):
        yield (
            f"read from {folder.name}",
            functools.partial(load_dataset_explanations, folder),
            refused(folder.name, types=_PATHS),
        )


def _evaluate(world: World) -> _Calls:
    new = (world.folder / f"evaluation {number}" for number in itertools.count())

    def run(prompts: Any = ("Rome is", "Rome was"), folder: Any = None, **kwargs: Any) -> Any:
        model = kwargs.pop("model", world.wrapped)
        options = {"methods": ["random"], "metrics": ["soft_ns"], **kwargs}
        return evaluate(model, prompts, next(new) if folder is None else folder, **options)

    scores = {"good": lambda model, sequences, prompt_length, mask=None: torch.zeros(1, 1, sequences.shape[1])}
    options: dict[str, tuple[Any, ...]] = {
        "methods": ([], {}, (), "nope", ["nope"], ["random", "random"], 5, {"a": 5}, [None], {5: scores["good"]}),
        "metrics": ([], (), "nope", ["nope"], ["soft_ns", "soft_ns"], 5, [None], {}),
        "settings": (5, {}, "step", Settings, False),
        "where": ({"task": "x"}, "task=x", 5, [("task", "x")], False),
        "max_prompts": _NUMBERS,
        "column": ("text", 5),
    }
    for name, values in options.items():
        for value in values:
            prompts = [{"prompt": "Rome is"}] if name in ("column", "where") else ["Rome is"]
            yield (
                f"{name}={value!r:.40}",
                functools.partial(run, prompts, **{name: value}),
                refused(name, "No record", "prompt in"),
            )
    for prompts in ([], None, 5, {"prompt": "a"}):
        yield f"{prompts!r} as prompts", functools.partial(run, prompts), refused("prompt", "empty")
    yield "prompts in no file", lambda: run("none.jsonl"), refused("none.jsonl", types=_PATHS)
    yield "no tokenizer", lambda: run(model=world.model), refused("tokenizer")
    for name, model in {"None": None, "a name": "llama"}.items():
        yield f"{name} as model", functools.partial(run, model=model, tokenizer=world.tokenizer), refused("model")
    yield "a file as folder", lambda: run(folder=world.folder / "prompts.jsonl"), refused("prompts.jsonl", types=_PATHS)
    yield "no folder", lambda: evaluate(world.wrapped, ["Rome"]), missing("output_dir")

    def only_good(found: Any) -> bool:
        return len(found.method_errors("bad")) == 2 and found.values("soft_ns").shape == (2, 2) and not found.errors

    bad_methods: dict[str, Any] = {
        "returns None": lambda *args: None,
        "returns another shape": lambda *args: torch.zeros(1, 1, 3),
        "returns fewer dimensions": lambda *args: torch.zeros(3),
        "returns NaN": lambda *args: torch.full((1, 1, args[1].shape[1]), NAN),
        "returns ints": lambda *args: [[[1]]],
        "raises": lambda *args: [][1],
        "takes no arguments": lambda: None,
    }
    for what, method in bad_methods.items():
        call = functools.partial(run, methods={"bad": method, **scores})
        yield f"a method that {what}", call, works(only_good)
    bad = [{"prompt": "Rome is", "rationale": r} for r in ([[5, 2]], [[0, 999]], "ab", [1], [["a", "b"]], 5)]
    call = functools.partial(run, [*bad, "Rome"], metrics=["auc"])
    yield (
        "rationales that are none",
        call,
        works(lambda found: list(found.errors) == list(range(6)) and _all_ours(found.errors)),
    )
    bad = [{"prompt": "Rome is", "target": target} for target in ("", 5, ["a"])] + ["", 5, None, [5]]
    call = functools.partial(run, [*bad, "Rome"])
    yield (
        "prompts and targets that are none",
        call,
        works_or(lambda found: list(found.errors) == list(range(7)) and _all_ours(found.errors), "prompt", "record"),
    )
    for value in ({1}, object(), b"a", NAN, 10**30):
        for field in ("id", "task"):
            records = [{"prompt": "Rome is", field: value}, {"prompt": "Rome was"}]
            judge = works_or(lambda found: len(found) == 2 and not found.errors, field)
            yield f"{value!r:.20} as {field}", functools.partial(run, records), judge
    done = world.folder / "evaluated"
    found = run(folder=done)
    yield "continued with another metric", lambda: run(folder=done, metrics=["soft_nc"]), refused("another job")
    yield "a metric that was not measured", lambda: found.values("soft_nc"), refused("soft_nc")
    for value in (0, 1, 2, -1, NAN, "a", None, True):
        yield f"summarise(confidence={value!r})", functools.partial(summarise, found, confidence=value), refused("confidence")
    for value in (5, ["random"]):
        yield f"summarise(reference={value!r})", functools.partial(summarise, found, reference=value), refused("reference")
    yield "summarised", lambda: summarise(found), works(lambda summary: "random" in summary.to_markdown(""))
    none_done = run([""], metrics=["soft_ns"])
    yield "summarised without results", lambda: summarise(none_done), refused("nothing to summarise")
    yield "merged with another", lambda: merge({"a": found, "b": run(metrics=["soft_nc"])}), refused("same")
    yield "nothing merged", lambda: merge({}), refused("evaluation")
    for folder in (world.folder / "none", world.folder / "model", world.folder / "done"):
        yield f"read from {folder.name}", functools.partial(load_evaluation, folder), refused(folder.name, types=_PATHS)
    (world.folder / "list.jsonl").write_text(json.dumps([1, 2]) + "\n{\n")
    yield "lines that are no records", lambda: run(world.folder / "list.jsonl"), refused("line", "record", "prompt")


def _all_ours(errors: dict[int, str]) -> bool:
    return all(error.startswith(("InvalidInputError", "UnsupportedArchitectureError")) for error in errors.values())


def _settings() -> _Calls:
    values: dict[str, tuple[Any, ...]] = {
        "level": ("token", None, ["step"]),
        "num_samples": (*_NUMBERS, None),
        "num_portions": _NUMBERS,
        "num_masks": (*_NUMBERS, None),
        "pis": ((), (0.5, 0.2), (NAN,), (2,), (-0.1,), "ab", None, 0.5, ("a",), (0.1, None), (True,)),
        "calibration": ("x", None, ["scale"]),
        "perturb_special_tokens": ("yes", 1, None),
        "batch_size": (*_NUMBERS, None),
        "seed": ("a", 1.5, None, NAN, True),
    }
    for name, bad in values.items():
        for value in bad:
            yield f"Settings({name}={value!r})", functools.partial(Settings, **{name: value}), refused(name)
    yield "an unknown setting", lambda: Settings(samples=3), missing("samples")
    yield "pis as a list", lambda: Settings(pis=[0.1, 0.5]).pis, works_or(lambda pis: tuple(pis) == (0.1, 0.5), "pis")
