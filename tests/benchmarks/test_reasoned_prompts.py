"""Prompts whose answers first state the facts that they need, and how it is measured what the result rests on."""

import pytest
import torch

from benchmarks.sources.reasoned import prompts
from benchmarks.sources.trace import measured


def test_the_needed_facts_are_stated_before_the_result_and_the_others_are_not():
    for prompt in [*prompts(), *prompts("tune")]:
        assert len(set(prompt.facts)) == 10
        for i, fact in enumerate(prompt.facts):
            assert (fact.rstrip(".") in prompt.reason) == (i in prompt.needed)
        assert prompt.reason.count(prompt.result) == (0 if prompt.kind == "together" else 1)


def test_prompts_for_choosing_are_others():
    assert not {(p.question, *p.facts) for p in prompts()} & {(p.question, *p.facts) for p in prompts("tune")}
    assert prompts() == prompts()


def test_needed_facts_are_ranked_among_those_that_are_not_and_equal_ones_share_ranks():
    assert measured(torch.tensor([0.5, 0.3, 0.2, 0.0]), {0, 1}) == pytest.approx((1, 0.8))
    assert measured(torch.tensor([0.1, 0.6, 0.1, 0.2]), {0, 1})[0] == pytest.approx((1 + 1 / 2.5) / 2)
