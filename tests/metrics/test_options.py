"""The options of all metrics: the keywords of each are those that it can use, in its signature and for type checkers."""

import inspect
from dataclasses import FrozenInstanceError, fields
from typing import get_type_hints

import pytest
import torch

from gradellm_hf import InvalidInputError
from gradellm_hf.metrics import (
    deletion,
    insertion,
    linear_datamodelling_score,
    pearson_correlation,
    pi_soft_nc,
    pi_soft_ns,
    rank_correlation,
    soft_nc,
    soft_ns,
    top_k_drop,
)
from gradellm_hf.metrics.options import MetricOptions, SamplingKeywords, SourceKeywords
from tests.support.small_llama import random_ids, small_llama

PERTURBING = ("level", "fixed", "batch_size")
KEYWORDS = {
    soft_ns: ("scaling", *PERTURBING, "generator", "num_samples"),
    soft_nc: ("scaling", *PERTURBING, "generator", "num_samples"),
    pi_soft_ns: ("pis", "calibration", *PERTURBING, "generator", "num_samples"),
    pi_soft_nc: ("pis", "calibration", *PERTURBING, "generator", "num_samples"),
    deletion: ("removal", "num_portions", "aligned", *PERTURBING, "generator", "sources"),
    insertion: ("removal", "num_portions", "aligned", *PERTURBING, "generator", "sources"),
    linear_datamodelling_score: ("removal", "num_masks", *PERTURBING, "generator", "sources"),
    top_k_drop: ("k", "removal", *PERTURBING, "generator", "sources"),
    rank_correlation: PERTURBING,
    pearson_correlation: PERTURBING,
}
IDS, HEATMAPS = random_ids(2, 9), torch.rand(2, 4, 9, generator=torch.Generator().manual_seed(0))


def test_what_type_checkers_read_is_what_the_options_are():
    types = get_type_hints(MetricOptions)
    assert get_type_hints(SamplingKeywords) | get_type_hints(SourceKeywords) == {
        field.name: types[field.name] for field in fields(MetricOptions)
    }


@pytest.mark.parametrize("metric", KEYWORDS, ids=lambda metric: metric.__name__)
def test_a_signature_shows_every_keyword_with_its_default(metric):
    parameters = inspect.signature(metric).parameters.values()
    assert tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY) == KEYWORDS[metric]
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters)
    defaults = MetricOptions()
    shown = {p.name: (p.default, p.annotation) for p in parameters if hasattr(defaults, p.name)}
    types = get_type_hints(MetricOptions)
    assert shown == {name: (getattr(defaults, name), types[name]) for name in shown}


@pytest.mark.parametrize("metric", KEYWORDS, ids=lambda metric: metric.__name__)
def test_options_that_a_metric_cannot_use_are_refused_by_name(metric):
    model, every = small_llama(), {field.name: getattr(MetricOptions(), field.name) for field in fields(MetricOptions)}
    metric(model, IDS, 5, HEATMAPS, **{name: value for name, value in every.items() if name in KEYWORDS[metric]})
    for name, value in {**every, "batches": 3}.items():
        if name not in KEYWORDS[metric]:
            with pytest.raises(TypeError, match=rf"^{metric.__name__}\(\) got an unexpected keyword argument '{name}'$"):
                metric(model, IDS, 5, HEATMAPS, **{name: value})


@pytest.mark.parametrize("metric", [metric for metric in KEYWORDS if "generator" in KEYWORDS[metric]])
def test_a_generator_is_drawn_from_and_without_one_each_call_draws_the_same(metric):
    model, scores = small_llama(), HEATMAPS.clone()
    scores[..., :3] = 0.5  # deletion and insertion draw the order of equal scores
    first, again = metric(model, IDS, 5, scores), metric(model, IDS, 5, scores)
    assert torch.equal(first, again)
    assert torch.equal(metric(model, IDS, 5, scores, generator=torch.Generator().manual_seed(0)), first)
    generator = torch.Generator().manual_seed(7)
    state = generator.get_state()
    assert not torch.equal(metric(model, IDS, 5, scores, generator=generator), first)
    assert not torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "token"}, "`level` must be 'step' or 'sequence', got 'token'"),
        ({"batch_size": 0}, "`batch_size` must be an int of at least 1"),
        ({"num_samples": 2.0}, "`num_samples` must be an int of at least 1"),
        ({"generator": 3}, "`generator` must be a torch.Generator on the CPU"),
    ],
)
def test_options_are_checked_when_they_are_made_and_stay_as_they_are(options, message):
    with pytest.raises(InvalidInputError, match=message):
        MetricOptions(**options)
    with pytest.raises(FrozenInstanceError):
        MetricOptions().level = "sequence"
