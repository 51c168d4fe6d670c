"""Attacks on what explanations are: `Explanation`, its units, pictures and tables, and reading files that are not there."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from gradellm_hf import ExplainGenerateOutput, Explanation, GradELLMError
from gradellm_hf.interchange import load_explanations, load_inseq, save_inseq, save_parquet, to_dataframe

from .outcomes import Attack, Judge, missing, refused, works, works_or
from .world import INF, NAN, World, close

_Call = Callable[[], Any]
_Calls = Iterator[tuple[str, _Call, Judge]]


def attacks(world: World) -> Iterator[Attack]:
    for surface, calls in (
        ("Explanation", _made(world.explanation)),
        ("Explanation", _asked(world.explanation)),
        ("ExplainGenerateOutput.explanation", _from_output(world)),
        ("aggregation", _aggregated(world.explanation)),
        ("shown and written", _shown(world.explanation, world.folder)),
        ("files that are not there", _not_there(world.folder)),
    ):
        yield from (Attack(surface, name, call, judge) for name, call, judge in calls)


def _made(good: Explanation) -> _Calls:
    scores, length = good.attributions, len(good.tokens)
    with_nan = scores.clone()
    with_nan[1, 2] = NAN
    values: dict[str, tuple[Any, ...]] = {
        "attributions": (None, scores[:2], scores[None], scores.tolist()[0], with_nan, scores * INF, "scores", [["a"] * 8] * 3),
        "token_probabilities": (None, torch.ones(2), torch.full((3,), NAN), torch.ones(3, 1), "x"),
        "target_scores": (torch.ones(2), torch.full((3,), INF), "x"),
        "layer_attributions": (torch.ones(2, 2, 8), torch.ones(3, 8), torch.full((2, 3, 8), NAN)),
        "tokens": (None, [], ["a"] * length, good.tokens[:-1], [1] * length, [*good.tokens[:-1], None], good.text),
        "text": (None, "other", 5, b"x"),
        "token_ids": ([1], "12345678", ["a"] * length, [1.5] * length, 5),
        "special": (None, [True], ["a"] * length, [None] * length, 5),
        "prompt_length": (-1, 9, 1.5, "5", None, True, NAN),
        "unit_names": (["a"], 5, [5] * length),
        "layers": ("all", [1.5, 2], ["a", "b"], [0], 5),
        "layer_names": (5, [1, 2], ["a"]),
        "level": ("page", None, 5),
        "explain_config": ("paper", {}),
        "model_name": (5, ["a"]),
    }
    names = {"tokens": ("tokens", "units", "prompt_length"), "prompt_length": ("prompt_length", "of them prompt")}
    for name, bad in values.items():
        for value in bad:
            shown = f"{tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)[:40]
            yield (
                f"{name}={shown}",
                functools.partial(dataclasses.replace, good, **{name: value}),
                refused(*names.get(name, (name,))),
            )
    yield "no tokens given", lambda: Explanation(text="a"), missing("tokens")
    yield "an unknown field", lambda: dataclasses.replace(good, score=1), missing("score")
    yield (
        "scores of float64",
        lambda: dataclasses.replace(good, attributions=scores.double()),
        works(lambda e: e.attributions.dtype == torch.float32 and close(e.attributions, scores)),
    )


def _asked(e: Explanation) -> _Calls:
    for step in (3, -4, 99, "a", 1.5, None, True, NAN):
        yield f"top({step!r})", functools.partial(e.top, step), refused("step")
    for k in (-1, "a", 1.5, None, True, NAN):
        yield f"top(0, {k!r})", functools.partial(e.top, 0, k), refused("k")
    yield "top(0, 0)", lambda: e.top(0, 0), works_or([].__eq__, "k")
    yield "top of all", lambda: [c.position for c in e.top(-1, 10**9)], works(lambda found: sorted(found) == [1, 2, 3, 4])
    yield "an unknown argument of top", lambda: e.top(0, special=True), missing("special")
    for by in ("mean", None, 5, ["max"]):
        yield f"normalize({by!r})", functools.partial(e.normalize, by), refused("normalize", "`by`")
    yield "normalize", lambda: e.normalize().attributions, works(lambda scores: close(scores.abs().amax(-1), torch.ones(3)))
    yield "compared with another", lambda: e == 5, works(lambda same: same is False)
    yield "printed", lambda: repr(e), works(lambda text: "Rome" in text)


def _from_output(world: World) -> _Calls:
    out, tokenizer = world.out, world.tokenizer
    for row in (-1, 1, 99, "a", None, 0.0, 0.5, True, NAN):
        yield f"row {row!r}", functools.partial(out.explanation, row, tokenizer), refused("row")
    yield "no tokenizer", lambda: out.explanations(), refused("tokenizer")
    yield "a tokenizer's name", lambda: out.explanations("gpt2"), refused("tokenizer")
    yield "the tokenizer", lambda: out.explanations(tokenizer)[0].attributions, works(lambda x: close(x, out.attributions[0]))


def _aggregated(e: Explanation) -> _Calls:
    for by in ("page", "", 5, None, 1.5, b"word", True, ["word"], {"word"}):
        yield f"aggregate({by!r})", functools.partial(e.aggregate, by), refused("level", "span")
    for generated in ("page", 5, ["token"], True):
        call = functools.partial(e.aggregate, "word", generated=generated)
        yield f"aggregate(generated={generated!r})", call, refused("level")
    for level in ("page", None, 5, ["word"]):
        yield f"units({level!r})", functools.partial(e.units, level), refused("level")
    border = len("".join(e.tokens[:5]))
    for span in (
        *("Berlin", "", " Rome, Rome", 5, None, b"Rome"),
        *((3, 3), (5, 3), (-2, 3), (0, border + 1), (0, 999), (0.0, 3.0), (True, 3), (0, 3, 5), (0,), ("a", "b"), (None, 3)),
    ):
        yield f"the span {span!r}", functools.partial(e.aggregate, {"a": span}), refused("span")
    yield "a span that occurs twice", lambda: e.aggregate({"a": "a"}), refused("span")
    yield "spans that overlap", lambda: e.aggregate([(0, 8), (4, 12)]), refused("span")
    yield "spans of one token", lambda: e.aggregate([(7, 9), (9, 12)]), refused("span")
    yield "a span whose name is a number", lambda: e.aggregate({1: "The"}), refused("name", "span")
    yield "no spans", lambda: e.aggregate({}).unit_names, works_or(lambda names: not any(names), "span")
    yield "no list of spans", lambda: e.aggregate([]).unit_names, works_or(lambda names: not any(names), "span")
    for by in ("token", "word", "sentence", {"a": "capital"}, [(4, 7)]):
        total = works(lambda found: close(found.attributions.sum(), e.attributions.sum()) and found.text == e.text)
        yield f"aggregate({by!r})", functools.partial(e.aggregate, by), total
    yield "an unknown argument", lambda: e.aggregate("word", level="token"), missing("level")
    yield "aggregated twice", lambda: e.aggregate("word").aggregate("sentence").text, works_or(e.text.__eq__, "level", "token")


def _shown(e: Explanation, folder: Path) -> _Calls:
    for top in (-1, 1.5, "a", None, True):
        yield f"render(top={top!r})", functools.partial(e.render, top=top), refused("top")
    yield "an unknown argument of render", lambda: e.render(colour=True), missing("colour")
    for title in (5, ["a"], b"a"):
        yield f"to_html(title={title!r})", functools.partial(e.to_html, title=title), refused("title")
        yield f"plot(title={title!r})", functools.partial(e.plot, title=title), refused("title")
    for cmap in ("no such map", 5):
        yield f"plot(cmap={cmap!r})", functools.partial(e.plot, cmap=cmap), refused("cmap", types=(ValueError,))
    for dpi in (0, -1, "a", NAN, None, True):
        yield f"plot(dpi={dpi!r})", functools.partial(e.plot, dpi=dpi), refused("dpi")
    yield "a title of markup", lambda: e.to_html(title="<script>"), works(lambda page: "<title>&lt;script&gt;" in page)
    no_text = dataclasses.replace(e, special=[True] * len(e.tokens))
    yield "a plot of nothing", no_text.plot, refused("Nothing to plot")
    yield "lines of nothing", lambda: no_text.render(), works(lambda text: text == "(not counted: special tokens 100 %)")
    writers = {"save": e.save, "to_html": e.to_html, "plot": e.plot, "save_inseq": functools.partial(save_inseq, e)}
    writers |= {"save_parquet": functools.partial(save_parquet, e)}
    for name, write in writers.items():
        suffix = ".png" if name == "plot" else ".x"
        named = refused("none", "a folder" + suffix, types=(OSError, GradELLMError))
        yield f"{name} into no folder", functools.partial(write, folder / "none" / f"a{suffix}"), named
        (folder / f"a folder{suffix}").mkdir(exist_ok=True)
        yield f"{name} onto a folder", functools.partial(write, folder / f"a folder{suffix}"), named
        if name != "to_html":
            yield (
                f"{name} to a number",
                functools.partial(write, 1.5),
                refused("path", "float", types=(TypeError, GradELLMError)),
            )
    yield "a picture of no kind", lambda: e.plot(folder / "a.unknown"), refused("unknown", types=(ValueError,))
    yield (
        "a picture without a kind",
        lambda: e.plot(folder / "picture") and (folder / "picture").is_file(),
        works_or(bool, "picture"),
    )
    for name, write in {"save_inseq": save_inseq, "save_parquet": save_parquet}.items():
        for value in ([], None, 5, [5], "text"):
            yield f"{name}({value!r})", functools.partial(write, value, folder / "a.x"), refused("explanation")
    for value in ([], None, 5, [5]):
        yield f"to_dataframe({value!r})", functools.partial(to_dataframe, value), refused("explanation")


def _not_there(folder: Path) -> _Calls:
    (folder / "empty").write_bytes(b"")
    (folder / "text.txt").write_text("no explanation")
    readers = {
        "Explanation.load": Explanation.load,
        "ExplainGenerateOutput.load": ExplainGenerateOutput.load,
        "load_explanations": load_explanations,
        "load_inseq": load_inseq,
    }
    for name, read in readers.items():
        for file in ("none.safetensors", "model", "empty", "text.txt", "prompts.jsonl"):
            named = refused(file, types=(OSError, GradELLMError))
            yield f"{name} of {file}", functools.partial(read, folder / file), named
        for value in (None, 5.5):
            yield f"{name}({value!r})", functools.partial(read, value), refused("path", "str", types=(TypeError, GradELLMError))
