"""Every public argument that is a number, a mask or an option: what it is not is refused, whichever function takes it."""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

from gradellm_hf import (
    GradELLM,
    GradELLMConfig,
    InvalidInputError,
    explain_dataset,
    explain_generate,
    explain_sequences,
    explain_stream,
    verify,
)
from gradellm_hf.evaluation import Settings, evaluate, merge, summarise
from gradellm_hf.methods import get_method, integrated_gradients, lime, method_names, occlusion, register_method
from gradellm_hf.metrics import (
    auc,
    average_precision,
    bootstrap,
    calibrate,
    deletion,
    insertion,
    normalised_area,
    pi_soft_nc,
    pi_soft_ns,
    rank_correlation,
    soft_nc,
    soft_ns,
    spearman,
    token_labels,
)
from tests.support.evaluated import PROMPTS, model_and_tokenizer
from tests.support.readable import made_up
from tests.support.small_llama import assert_same_heatmaps, padded_prompts, random_ids, small_llama

IDS, P = random_ids(1, 6), 4
HEATMAPS = torch.rand(1, 2, 6, generator=torch.Generator().manual_seed(0)).tril(P - 1)
EXPLANATION = made_up(["a", " b", " c", " d"], 2)


@pytest.fixture(scope="module")
def llama():
    return small_llama()


@pytest.fixture(scope="module")
def explainer():
    return GradELLM(*model_and_tokenizer())


def measured(metric: Callable, **options: Any) -> Callable[[Any], Any]:
    """A metric as a function of one of its options, on a small model."""
    ((name, default),) = options.items()

    def call(value: Any = default) -> Any:
        return metric(small_llama(), IDS, P, HEATMAPS, **{name: value})

    return call


def explained(method: Callable, **options: Any) -> Callable[[Any], Any]:
    ((name, _),) = options.items()
    return lambda value: method(small_llama(), IDS, P, **{name: value})


NOT_WHOLE = [True, 2.0, 2.5, math.nan, math.inf, "2", None, b"\x02", [2], torch.tensor(2), numpy.array([2])]
#: By argument: the call, a value that is right, the smallest one that is right, and wrong values beside those of any number.
WHOLE: dict[str, tuple[Callable[[Any], Any], int, int | None, list[Any]]] = {
    "GradELLMConfig.layers": (lambda n: GradELLMConfig(layers=n), 2, 1, []),
    "GradELLMConfig.step_chunk_size": (lambda n: GradELLMConfig(step_chunk_size=n), 2, 1, []),
    "explain_sequences.prompt_length": (lambda n: explain_sequences(small_llama(), IDS, n), 2, 1, [7]),
    "verify.prompt_length": (lambda n: verify(small_llama(), prompt_length=n), 2, 1, []),
    "verify.num_steps": (lambda n: verify(small_llama(), num_steps=n), 2, 1, []),
    "verify.seed": (lambda n: verify(small_llama(), seed=n), 2, 0, [2**70]),
    "Explanation.prompt_length": (lambda n: dataclasses.replace(EXPLANATION, prompt_length=n), 2, None, [5, -1]),
    "Explanation.top.step": (lambda n: EXPLANATION.top(n), 1, None, [2, -3]),
    "Explanation.top.k": (lambda n: EXPLANATION.top(0, n), 2, 0, []),
    "Explanation.render.top": (lambda n: EXPLANATION.render(top=n), 2, 0, []),
    "Explanation.plot.dpi": (lambda n: EXPLANATION.plot(dpi=n), 20, 1, []),
    "ExplainGenerateOutput.explanation.row": (
        lambda n: explain_sequences(small_llama(), IDS.expand(3, -1), P).explanation(n, model_and_tokenizer()[1]).text,
        2,
        0,
        [3],
    ),
    "Settings.num_samples": (lambda n: Settings(num_samples=n), 2, 1, []),
    "Settings.num_portions": (lambda n: Settings(num_portions=n), 2, 1, []),
    "Settings.batch_size": (lambda n: Settings(batch_size=n), 2, 1, []),
    "Settings.seed": (lambda n: Settings(seed=n).generator(3).initial_seed(), 2**62, None, []),
    "bootstrap.num_resamples": (lambda n: bootstrap(torch.rand(3), num_resamples=n), 2, 1, []),
    "deletion.num_portions": (measured(deletion, num_portions=1), 2, 1, []),
    "insertion.num_portions": (measured(insertion, num_portions=1), 2, 1, []),
    "deletion.batch_size": (measured(deletion, batch_size=1), 2, 1, []),
    "rank_correlation.batch_size": (measured(rank_correlation, batch_size=1), 2, 1, []),
    "soft_ns.num_samples": (measured(soft_ns, num_samples=1), 2, 1, []),
    "soft_nc.num_samples": (measured(soft_nc, num_samples=1), 2, 1, []),
    "soft_ns.batch_size": (measured(soft_ns, batch_size=1), 2, 1, []),
    "pi_soft_ns.num_samples": (measured(pi_soft_ns, num_samples=1), 2, 1, []),
    "pi_soft_nc.num_samples": (measured(pi_soft_nc, num_samples=1), 2, 1, []),
    "pi_soft_nc.batch_size": (measured(pi_soft_nc, batch_size=1), 2, 1, []),
    "occlusion.batch_size": (explained(occlusion, batch_size=1), 2, 1, []),
    "lime.batch_size": (explained(lime, batch_size=1), 20, 1, []),
    "lime.num_samples": (explained(lime, num_samples=1), 2, 1, []),
    "integrated_gradients.num_points": (explained(integrated_gradients, num_points=1), 2, 1, []),
    "integrated_gradients.batch_size": (explained(integrated_gradients, batch_size=1), 2, 1, []),
}
OPTIONAL = {"GradELLMConfig.step_chunk_size", "Settings.num_portions", "deletion.num_portions", "insertion.num_portions"}
A_LIST = {"GradELLMConfig.layers"}  # is also right


@pytest.mark.parametrize("argument", WHOLE)
def test_a_whole_number_is_an_int_of_python_or_numpy_in_its_range(argument):
    call, right, smallest, others = WHOLE[argument]
    call(right)
    call(numpy.int64(right))
    wrong = [value for value in NOT_WHOLE if not (value is None and argument in OPTIONAL)]
    wrong = [value for value in wrong if not (isinstance(value, list) and argument in A_LIST)]
    if smallest is not None:
        call(smallest)
        wrong += [smallest - 1, -3]
    name = argument.rpartition(".")[2]
    for value in [*wrong, *others]:
        with pytest.raises(InvalidInputError, match=rf"`{name}`|There is no (step|row)") as raised:
            call(value)
        assert repr(value) in str(raised.value) or str(value) in str(raised.value)


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (lambda x: calibrate(torch.rand(3), x), [-0.1, 1.1]),
        (lambda x: bootstrap(torch.rand(3), confidence=x, num_resamples=9), [0, 1, 1.0]),
        (lambda x: summarise(None, confidence=x), [0, 1]),  # type: ignore[arg-type]
        (explained(lime, ridge=1.0), [0, -1.0]),
        (explained(lime, kernel_width=0.25), [0, -1.0]),
    ],
    ids=["calibrate.pi", "bootstrap.confidence", "summarise.confidence", "lime.ridge", "lime.kernel_width"],
)
def test_a_real_number_is_finite_and_in_its_range(call, wrong):
    for value in [*wrong, True, math.nan, math.inf, -math.inf, "0.5", None, b"\x01", [0.5], torch.tensor(0.5)]:
        with pytest.raises(InvalidInputError, match=r"`(pi|confidence|ridge|kernel_width)` must be a"):
            call(value)


SHARES = [(), [], (math.nan,), (0.5, math.inf), (0.5, 1.5), (-0.5,), (True,), ("0.5",), (None,), b"\x00\x01", "01", 0.5, None]


@pytest.mark.parametrize(
    "call",
    [measured(pi_soft_ns, pis=(0.5,)), measured(pi_soft_nc, pis=(0.5,)), lambda pis: Settings(pis=pis)],
    ids=["pi_soft_ns", "pi_soft_nc", "Settings"],
)
def test_shares_are_numbers_between_0_and_1(call):
    for wrong in SHARES:
        with pytest.raises(InvalidInputError, match="`pis` must be"):
            call(wrong)
    for right in ((0.2, 0.5), [0, 1], numpy.array([0.2, 0.5], dtype=numpy.float32)):
        call(right)


def test_settings_are_what_json_can_hold():
    settings = Settings(num_samples=numpy.int64(2), seed=numpy.int32(3), pis=numpy.array([0.25, 0.5], dtype=numpy.float32))
    assert (type(settings.num_samples), type(settings.seed), settings.pis) == (int, int, (0.25, 0.5))
    for value in (1, 0, None, "yes"):
        with pytest.raises(InvalidInputError, match="`perturb_special_tokens` must be True or False"):
            Settings(perturb_special_tokens=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("points", [(0.1,), (0.1, 0.2), (0.1, 0.2, math.nan), (0.1, 0.3, 0.2), b"\x00\x01\x02", None, 3])
def test_points_of_an_area_are_ascending_numbers(points):
    with pytest.raises(InvalidInputError, match=r"`points` must be 3 \(at least 2\) ascending numbers"):
        normalised_area(torch.rand(3), points)


@pytest.mark.parametrize("layers", [b"\x01", bytearray(b"\x01"), memoryview(b"\x01"), [True], [1, 2.0], ["1"], {1}, (None,)])
def test_layers_are_no_bytes_and_no_bools(layers):
    with pytest.raises(InvalidInputError, match="`layers` must be"):
        GradELLMConfig(layers=layers)
    assert GradELLMConfig(layers=(numpy.int64(1), 2)).layers == [1, 2]


@pytest.mark.parametrize("span", [(True, 2), (0.0, 2), b"\x00\x02", (0, 2, 3), "ab", None, 3, (0, "2")])
def test_spans_are_pairs_of_whole_numbers(span):
    with pytest.raises(InvalidInputError, match=r"pair \(start, end\) of whole numbers"):
        token_labels(["ab", "cd"], [span])
    with pytest.raises(InvalidInputError, match=r"must be a substring of the prompt or a pair|is not in the prompt"):
        made_up(["xy", "zv", "w"], 2).aggregate([span])
    assert token_labels(["ab", "cd"], [(numpy.int64(0), 1)]).tolist() == [True, False]


# --- Masks ----------------------------------------------------------------------------------------------------------

MASKED: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "explain_sequences": lambda model, mask: explain_sequences(model, random_ids(3, 12), 9, mask).attributions,
    "explain_sequences, whole": lambda model, mask: (
        explain_sequences(model, random_ids(3, 12), 9, torch.cat([mask, torch.ones(3, 3).to(mask)], 1)).attributions
    ),
    "explain_generate": lambda model, mask: (
        explain_generate(model, random_ids(3, 9), attention_mask=mask, max_new_tokens=2, do_sample=False).attributions
    ),
    "explain_stream": lambda model, mask: (
        next(iter(explain_stream(model, random_ids(3, 9), attention_mask=mask, max_new_tokens=2))).attributions
    ),
    "saliency": lambda model, mask: get_method("saliency")(model, random_ids(3, 12), 9, mask),
    "deletion": lambda model, mask: deletion(model, random_ids(3, 12), 9, torch.rand(3, 3, 12), mask, num_portions=2),
    "deletion, fixed": lambda model, mask: deletion(
        model, random_ids(3, 12), 9, torch.ones(3, 3, 12), fixed=torch.cat([torch.zeros_like(mask[:, :1]), mask[:, 1:]], 1)
    ),
    "auc": lambda _, mask: auc(torch.rand(3, 9), torch.arange(9) % 2, mask),
    "auc, labels": lambda _, mask: auc(torch.rand(2, 9), mask[1:]),
    "average_precision": lambda _, mask: average_precision(torch.rand(3, 9), mask, mask),
    "calibrate": lambda _, mask: calibrate(torch.rand(3, 9), 0.5, mask),
    "spearman": lambda _, mask: spearman(torch.rand(3, 9), torch.rand(3, 9), mask),
}


@pytest.mark.parametrize("entrance", MASKED)
@pytest.mark.parametrize("wrong", [0.5, 2, -1, math.nan, math.inf])
def test_a_mask_holds_nothing_but_0_and_1(llama, entrance, wrong):
    mask = padded_prompts()["attention_mask"].to(torch.int64 if isinstance(wrong, int) else torch.float32)
    mask[1, 6] = wrong
    with pytest.raises(
        InvalidInputError, match=r"`(attention_mask|mask|labels|fixed)` must hold nothing but 0 and 1"
    ) as raised:
        MASKED[entrance](llama, mask)
    assert f"got {wrong}" in str(raised.value)


@pytest.mark.parametrize("entrance", MASKED)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float16, torch.float64])
def test_a_mask_of_any_type_means_the_same(llama, entrance, dtype):
    if entrance in ("explain_generate", "explain_stream") and dtype == torch.float16:
        pytest.skip("`generate` itself takes a mask of the model's type only")
    mask = padded_prompts()["attention_mask"]

    def found(mask):
        torch.manual_seed(0)
        return MASKED[entrance](llama, mask)

    assert_same_heatmaps(found(mask.to(dtype)).double(), found(mask).double())


@pytest.mark.parametrize("mask", [[True] * 9, "1" * 9, numpy.ones(9), 1], ids=["list", "text", "array", "number"])
def test_a_mask_is_a_tensor(mask):
    for call in (
        lambda: auc(torch.rand(3, 9), torch.arange(9) % 2, mask),
        lambda: auc(torch.rand(3, 9), mask),
        lambda: average_precision(torch.rand(3, 9), mask),
        lambda: calibrate(torch.rand(3, 9), 0.5, mask),
        lambda: spearman(torch.rand(3, 9), torch.rand(3, 9), mask),
    ):
        with pytest.raises(InvalidInputError, match=rf"`(mask|labels)` must be a torch.Tensor, got {type(mask).__name__}"):
            call()


def test_a_mask_has_the_shape_of_what_it_masks():
    mask = torch.ones(2, 4)
    for call in (
        lambda: auc(torch.rand(3, 9), torch.arange(9) % 2, mask),
        lambda: auc(torch.rand(3, 9), mask),
        lambda: calibrate(torch.rand(3, 9), 0.5, mask),
        lambda: spearman(torch.rand(3, 9), torch.rand(3, 9), mask),
    ):
        with pytest.raises(InvalidInputError, match=r"`(mask|labels)` must broadcast to .*\[3, 9\], got \[2, 4\]"):
            call()
    with pytest.raises(InvalidInputError, match=r"`x` \[3, 9\] and `y` \[2, 4\] must broadcast"):
        spearman(torch.rand(3, 9), mask)


# --- Tensors, texts, functions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("scores", lambda x: auc(x, torch.ones(3))),
        ("scores", lambda x: average_precision(x, torch.ones(3))),
        ("scores", lambda x: calibrate(x, 0.5)),
        ("values", bootstrap),
        ("curve", lambda x: normalised_area(x, [0, 1, 2])),
        ("x", lambda x: spearman(x, torch.rand(3))),
        ("y", lambda x: spearman(torch.rand(3), x)),
    ],
)
def test_scores_are_a_tensor(name, call):
    for value in ([0.1, 0.2, 0.3], None, "abc", numpy.ones(3)):
        with pytest.raises(InvalidInputError, match=f"`{name}` must be a torch.Tensor, got {type(value).__name__}"):
            call(value)


def test_tokens_are_texts():
    for tokens in ([1, 2], "ab", None, [None]):
        with pytest.raises(InvalidInputError, match=r"`tokens`.* must be a (text|list)"):
            token_labels(tokens, [(0, 1)])
    with pytest.raises(InvalidInputError, match="`spans` must be a list"):
        token_labels(["ab"], 5)  # type: ignore[arg-type]


def test_a_title_is_a_text():
    for title in (5, ["a"], b"a"):
        for call in (EXPLANATION.to_html, EXPLANATION.plot):
            with pytest.raises(InvalidInputError, match=r"`title` must be None .* or a text"):
                call(title=title)


def test_a_method_is_a_function_with_a_name():
    before = method_names()
    for name in (None, 5, ["a"], ""):
        with pytest.raises(InvalidInputError, match="`name`"):
            register_method(name, get_method("random"))  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="There is no method named"):
            get_method(name)  # type: ignore[arg-type]
    for method in (None, 5, "saliency"):
        with pytest.raises(InvalidInputError, match="`method` must be a function"):
            register_method("another", method)  # type: ignore[arg-type]
    assert method_names() == before


def test_the_column_of_the_prompts_is_a_text(explainer, tmp_path):
    for column in (5, ["prompt"], b"prompt"):
        for call in (explain_dataset, evaluate):
            with pytest.raises(InvalidInputError, match=r"`column` must be None .* or a text"):
                call(explainer, [{"prompt": "Rome"}], tmp_path / "out", column=column)
    assert not (tmp_path / "out").exists()


def test_what_is_compared_and_merged_has_names(explainer, tmp_path):
    found = evaluate(explainer, ["Rome is"], tmp_path / "out", methods=["random"], metrics=["soft_ns"])
    for reference in (5, ["random"]):
        with pytest.raises(InvalidInputError, match=r"`reference` must be None .* or a text"):
            summarise(found, reference=reference)  # type: ignore[arg-type]
    for evaluations in ({}, [], None, [found]):
        with pytest.raises(InvalidInputError, match=r"`evaluations` must be evaluations by .* at least one"):
            merge(evaluations)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="must be a Evaluation, got 5"):
        merge({"a": found, "b": 5})  # type: ignore[dict-item]
    with pytest.raises(InvalidInputError, match="the names in `evaluations`"):
        merge({1: found})  # type: ignore[dict-item]


# --- What is empty is not what is left out --------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, [], "", 0, False])
def test_an_empty_configuration_is_no_configuration(explainer, config, tmp_path):
    calls = [
        lambda: explainer.explain("Rome", "is", explain_config=config),
        lambda: explainer.explain("Rome", explain_config=config, max_new_tokens=1),
        lambda: explainer.generate(random_ids(1, 3), explain_config=config, max_new_tokens=1),
        lambda: explain_generate(explainer.model, random_ids(1, 3), explain_config=config, max_new_tokens=1),
        lambda: explain_sequences(explainer.model, IDS, 3, explain_config=config),
        lambda: explain_stream(explainer.model, random_ids(1, 3), explain_config=config),
        lambda: explain_dataset(explainer, ["Rome"], tmp_path / "out", explain_config=config),
        lambda: GradELLM(explainer.model, explainer.tokenizer, config),
        lambda: get_method("grad_ellm")(explainer.model, IDS, 3, explain_config=config),
    ]
    for call in calls:
        with pytest.raises(InvalidInputError, match="must be a GradELLMConfig, got"):
            call()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": []}, r"`methods` must be different names out of .* got \[\]"),
        ({"methods": ()}, "`methods` must be"),
        ({"methods": ""}, "`methods` must be"),
        ({"methods": 0}, r"`methods` must be .* got \[0\]"),
        ({"methods": {}}, "`methods` is empty"),
        ({"methods": {"a": 5}}, r"`methods\['a'\]` must be a function"),
        ({"methods": {5: print}}, r"the names in `methods`\[0\] must be a text, got 5"),
        ({"metrics": []}, "`metrics` must be"),
        ({"metrics": 0}, "`metrics` must be"),
        ({"metrics": [["auc"]]}, "`metrics` must be"),
        ({"settings": {}}, "`settings` must be a Settings"),
        ({"settings": 0}, "`settings` must be a Settings"),
        ({"where": []}, "`where` must be a dict"),
        ({"where": ""}, "`where` must be a dict"),
        ({"max_prompts": 0}, r"`max_prompts` must be None \(all\) or an int of at least 1, got 0"),
        ({"max_prompts": True}, "`max_prompts` must be"),
        ({"max_prompts": 2.0}, "`max_prompts` must be"),
        ({"tokenizer": ""}, "`tokenizer` must be"),
    ],
    ids=str,
)
def test_an_evaluation_of_something_empty_is_refused(explainer, options, message, tmp_path):
    with pytest.raises(InvalidInputError, match=message):
        evaluate(explainer, copy.deepcopy(PROMPTS), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("batch_size", [0, -1, True, 2.0, None, "2", b"\x02"]),
        ("shard_size", [0, -1, True, 2.0, "2", b"\x02"]),
        ("seed", [True, 2.0, None, "2", math.nan]),
        ("score_dtype", ["", "float64", None, 0, [], torch.float32]),
        ("tokenizer", ["", 0, "gpt2", []]),
    ],
)
def test_a_job_with_something_that_is_none_is_not_begun(explainer, name, values, tmp_path):
    for value in values:
        with pytest.raises(InvalidInputError, match=f"`{name}` must be"):
            explain_dataset(explainer, ["Rome"], tmp_path / "out", **{name: value}, max_new_tokens=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tokenizer", ["gpt2", 3, [], {}, object()])
def test_a_tokenizer_that_is_none_is_refused(explainer, tokenizer):
    with pytest.raises(InvalidInputError, match="`tokenizer` must be the model's tokenizer or processor"):
        GradELLM(explainer.model, tokenizer).explain("Rome", "is")


def test_units_and_titles_that_are_empty_are_not_left_out():
    with pytest.raises(InvalidInputError, match="level of units must be one of"):
        EXPLANATION.units("word", "")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="level of units must be one of"):
        EXPLANATION.units([])  # type: ignore[arg-type]
    assert "<title></title>" in EXPLANATION.to_html(title="")
