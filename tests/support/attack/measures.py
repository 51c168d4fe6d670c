"""Attacks on methods and metrics."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gradellm_hf import GradELLMConfig, metrics
from gradellm_hf.methods import get_method, method_names, register_method
from gradellm_hf.metrics.bootstrap import bootstrap

from .outcomes import Attack, Judge, missing, refused, works, works_or
from .world import INF, NAN, World, close

_Call = Callable[[], Any]
_Calls = Iterator[tuple[str, _Call, Judge]]
_BY_SOURCE = ("deletion", "insertion", "linear_datamodelling_score", "top_k_drop")
_PERTURBING = ("soft_ns", "soft_nc", "pi_soft_ns", "pi_soft_nc", *_BY_SOURCE, "rank_correlation", "pearson_correlation")
_NUMBERS = (0, -1, 1.5, "3", True, NAN)


def attacks(world: World) -> Iterator[Attack]:
    for surface, calls in (("metrics", _perturbing(world)), ("metrics", _others()), ("methods", _methods(world))):
        yield from (Attack(surface, name, call, judge) for name, call, judge in calls)


def _bad_texts(world: World) -> dict[str, tuple[tuple[Any, ...], tuple[str, ...]]]:
    """Positional arguments (model, sequences, prompt_length, mask) and what the error speaks of."""
    model, text, ones = world.model, world.text, torch.ones_like(world.text)
    return {
        "a model's name": (("llama", text, 5, None), ("model",)),
        "an encoder-decoder model": ((world.t5, text % 97, 5, None), ("encoder-decoder",)),
        "a model in training mode": ((world.training, text, 5, None), ("training mode",)),
        "weights of NaN": ((world.with_nan, text, 5, None), ("NaN",)),
        "ids as floats": ((model, text.float(), 5, None), ("sequences",)),
        "ids as a list": ((model, text.tolist(), 5, None), ("sequences",)),
        "an id out of the vocabulary": ((model, text + 400, 5, None), ("sequences",)),
        "no prompt": ((model, text, 0, None), ("prompt_length",)),
        "half a prompt": ((model, text, 2.5, None), ("prompt_length",)),
        "a mask of halves": ((model, text, 5, ones * 0.5), ("attention_mask",)),
        "a mask of NaN": ((model, text, 5, ones * NAN), ("attention_mask",)),
        "a mask of zeros": ((model, text, 5, ones * 0), ("padding", "position")),
        "a mask of another shape": ((model, text, 5, ones[:, :3]), ("attention_mask",)),
        "a mask as a list": ((model, text, 5, ones.tolist()), ("attention_mask",)),
    }


def _perturbing(world: World) -> _Calls:
    model, text, scores = world.model, world.text, world.out.attributions
    for name in _PERTURBING:
        metric = getattr(metrics, name)
        for what, (arguments, words) in _bad_texts(world).items():
            call = functools.partial(metric, *arguments[:3], scores, arguments[3])
            yield f"{name}: {what}", call, refused(*words)
        yield f"{name}: nothing after the prompt", functools.partial(metric, model, text, 8, scores[:, :0]), refused("prompt")
        for what, bad in {
            "of another shape": scores[0],
            "of fewer steps": scores[:, :1],
            "of NaN": scores * NAN,
            "of infinity": scores + INF,
            "that are none": None,
            "as a list": scores.tolist(),
            "of text": "scores",
        }.items():
            yield f"{name}: scores {what}", functools.partial(metric, model, text, 5, bad), refused("attributions")

        def measure(metric: Any = metric, **options: Any) -> Any:
            return metric(model, text, 5, scores, **options)

        options: dict[str, tuple[Any, ...]] = {
            "level": ("token", None, 5),
            "fixed": (torch.ones(5), torch.ones(4, dtype=torch.bool), [True] * 5, torch.ones(5, dtype=torch.bool), "x"),
            "batch_size": _NUMBERS,
        }
        if not name.endswith("correlation"):
            options["generator"] = (5, "seed", torch.default_generator.get_state())
        if "soft" in name:
            options["num_samples"] = _NUMBERS
        if name.startswith("soft"):
            options["scaling"] = ("max", None)
        if name.startswith("pi"):
            options |= {"pis": ((), (NAN,), (2.0,), (-0.1,), "ab", ("a",), 0.5, None, [[0.5]]), "calibration": ("x", None)}
        if name in _BY_SOURCE:
            options |= {"removal": ("x", None), "sources": (torch.rand(5), torch.arange(4), [0] * 5, torch.full((5,), -1), "x")}
        if name in ("deletion", "insertion"):
            options |= {"num_portions": _NUMBERS, "aligned": ("yes", 1, None)}
        options |= {"linear_datamodelling_score": {"num_masks": _NUMBERS}, "top_k_drop": {"k": _NUMBERS}}.get(name, {})
        for option, values in options.items():
            for value in values:
                words = (option, {"fixed": "position", "sources": "source"}.get(option, option))
                yield f"{name}: {option}={str(value)[:30]}", functools.partial(measure, **{option: value}), refused(*words)
        yield f"{name}: an unknown option", functools.partial(measure, batches=3), missing("batches")
        yield f"{name}: no scores", functools.partial(metric, model, text, 5), missing("attributions")
        yield (
            f"{name}: good scores, one method or two",
            lambda metric=metric: (metric(model, text, 5, scores), metric(model, text, 5, torch.stack([scores, -scores]))),
            works(lambda found: close(found[0].nan_to_num(7), found[1][0].nan_to_num(7))),
        )


def _others() -> _Calls:
    scores, labels = torch.tensor([0.1, 0.9, 0.4]), torch.tensor([False, True, False])
    agreement = {name: getattr(metrics, name) for name in ("auc", "average_precision", "reciprocal_rank")}
    for name, function in {**agreement, "recall_at_k": functools.partial(metrics.recall_at_k, k=1)}.items():
        for what, bad in {
            "NaN": (scores * NAN, labels),
            "scores as a list": (scores.tolist(), labels),
            "labels of another shape": (scores, labels[:2]),
            "labels of halves": (scores, labels * 0.5),
            "labels as a list": (scores, labels.tolist()),
            "a mask of another shape": (scores, labels, labels[:2]),
            "a mask of halves": (scores, labels, torch.full((3,), 0.5)),
            "None": (None, None),
        }.items():
            yield f"{name}: {what}", functools.partial(function, *bad), refused("scores", "labels", "mask")
        yield f"{name}: labels of floats", functools.partial(function, scores, labels.float()), works(lambda x: float(x) == 1)
        yield f"{name}: good scores", functools.partial(function, scores, labels), works(lambda x: float(x) == 1)
    for span in ((2, 1), (0, 99), (-1, 2), (0.5, 2), ("a", "b"), (0,), 5, None, "ab"):
        yield f"token_labels: {span!r}", functools.partial(metrics.token_labels, ["a", "bc"], [span]), refused("span")
    yield "token_labels: a number as token", lambda: metrics.token_labels([1, 2], [(0, 1)]), refused("tokens")
    values = torch.tensor([[1.0, 2.0, 4.0]])
    for option, bad_values in {
        "confidence": (0, 1, 2, -1, NAN, "a", None, True),
        "num_resamples": (*_NUMBERS, None),
        "generator": (5, "a"),
    }.items():
        for value in bad_values:
            yield f"bootstrap: {option}={value!r}", functools.partial(bootstrap, values, **{option: value}), refused(option)
    for what, bad in {
        "no prompt": values[:, :0],
        "a number": torch.tensor(1.0),
        "a list": [1.0],
        "infinity": values + INF,
    }.items():
        yield f"bootstrap: {what}", functools.partial(bootstrap, bad), refused("values")
    yield "bootstrap: equal values", lambda: bootstrap(torch.ones(5)), works(lambda x: x.low == x.mean == x.high == 1)
    for pi in (-0.1, 2, NAN, "a", None, True):
        yield f"calibrate: {pi!r}", functools.partial(metrics.calibrate, scores, pi), refused("pi")
    for what, arguments in {
        "scores of NaN": (scores * NAN, 0.5),
        "scores as a list": (scores.tolist(), 0.5),
        "a mask of another shape": (scores, 0.5, labels[:2]),
        "a mask of halves": (scores, 0.5, torch.full((3,), 0.5)),
        "a mask as a list": (scores, 0.5, labels.tolist()),
    }.items():
        yield f"calibrate: {what}", functools.partial(metrics.calibrate, *arguments), refused("score", "mask")
    yield "calibrate: no such method", lambda: metrics.calibrate(scores, 0.5, method="x"), refused("method", "calibration")
    yield (
        "calibrate: a half",
        lambda: metrics.calibrate(scores, 0.5),
        works(lambda x: close(x.mean(), torch.tensor(0.5).double())),
    )
    for points in ([0.1], [0.2, 0.1, 0.3], [0.1, NAN, 0.3], "abc", None, [0.1, 0.2]):
        call = functools.partial(metrics.normalised_area, scores, points)
        yield f"normalised_area: {points!r}", call, refused("points")
    yield "normalised_area: a list", lambda: metrics.normalised_area([1.0, 1.0], [0, 1]), refused("curve")


def _methods(world: World) -> _Calls:
    model, text = world.model, world.text
    for name in method_names():
        method: Any = get_method(name)
        fast = {"num_samples": 8} if name == "lime" else {"num_points": 4} if name == "integrated_gradients" else {}
        for what, (arguments, words) in _bad_texts(world).items():
            if name == "random" and what == "weights of NaN":  # it never looks at them
                continue
            if name == "grad_ellm_paper" and what != "a model's name":  # refuses this model, whatever else is wrong
                words = (*words, "H * D")
            yield f"{name}: {what}", functools.partial(method, *arguments, **fast), refused(*words)
        yield f"{name}: an unknown option", functools.partial(method, model, text, 5, no_such=1), missing("no_such")
        yield f"{name}: no prompt length", functools.partial(method, model, text), missing("prompt_length")

        def is_whole(found: Any) -> bool:
            seen = torch.ones(3, 8).tril(4).bool()
            return found.shape == (1, 3, 8) and bool(found.isfinite().all()) and not found[0][~seen].any()

        judge = refused("H * D") if name == "grad_ellm_paper" else works(is_whole)
        yield f"{name}: a good text", functools.partial(method, model, text, 5, **fast), judge
    options: dict[str, dict[str, tuple[Any, ...]]] = {
        "saliency": {"target": ("entropy", None, 5)},
        "input_x_gradient": {"target": ("entropy", None)},
        "integrated_gradients": {"target": ("entropy", None), "num_points": (*_NUMBERS, None), "batch_size": _NUMBERS},
        "deep_lift": {"target": ("entropy", None)},
        "occlusion": {"measure": ("loss", None), "batch_size": _NUMBERS},
        "lime": {
            "measure": ("hellinger", None),
            "num_samples": (*_NUMBERS, None),
            "ridge": (-1.0, NAN, "a", None, True),
            "kernel_width": (0.0, -1.0, NAN, "a", None, True),
            "generator": (5, "a"),
            "batch_size": _NUMBERS,
        },
        "random": {"generator": (5, "a")},
        "grad_ellm": {"config": ("paper", {}, 5, GradELLMConfig)},
    }
    for name, by_option in options.items():
        for option, values in by_option.items():
            for value in values:
                call = functools.partial(get_method(name), model, text, 5, **{option: value})
                yield f"{name}: {option}={value!r}", call, refused(option)
    yield "no such method", lambda: get_method("magic"), refused("magic")
    for value in (None, 5, ["saliency"]):
        yield f"get_method({value!r})", functools.partial(get_method, value), refused("method")
    yield "a name that is taken", lambda: register_method("saliency", lambda *args: None), refused("saliency")
    for value in (None, 5, "saliency"):
        yield f"register_method('x', {value!r})", functools.partial(register_method, f"x{value}", value), refused("method")
    for value in (None, 5, "", ["a"]):
        yield f"register_method({value!r})", functools.partial(register_method, value, lambda *args: None), refused("name")
    yield (
        "attention of a text of two rows",
        lambda: get_method("attention_mean")(model, text.repeat(2, 1), 5),
        works_or(lambda found: close(found[0], found[1]), "attention"),
    )
