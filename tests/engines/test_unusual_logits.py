"""Models that never write some tokens, and models that have no preference at all, are explained like any other."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradellm_hf import GradELLMConfig, InvalidInputError, explain_generate, explain_sequences, explain_stream, verify
from tests.support.small_llama import assert_same_heatmaps, random_ids, small_llama

SUPPRESSED = [-torch.inf, torch.finfo(torch.float32).min, -1e9]
pytestmark = pytest.mark.filterwarnings("error::gradellm_hf.GradELLMWarning")  # replay is not given up


class Suppress(nn.Module):
    """A head that never writes the first five tokens."""

    def __init__(self, head: nn.Linear, logit: float):
        super().__init__()
        self.head, self.logit, self.weight = head, logit, head.weight

    def forward(self, hidden: Tensor) -> Tensor:
        return self.head(hidden).index_fill(-1, torch.arange(5), self.logit)


def suppressing(logit: float, **options: Any) -> Any:
    model = small_llama(**options)
    model.lm_head = Suppress(model.lm_head, logit)
    return model


def indifferent(**options: Any) -> Any:
    """All its logits are 0."""
    model = small_llama(**options)
    model.lm_head.weight.data.zero_()
    return model


@pytest.mark.parametrize("logit", SUPPRESSED)
@pytest.mark.parametrize("target", ["logit", "log_probability"])
def test_tokens_that_a_model_never_writes_change_nothing_for_the_others(logit: float, target: Any) -> None:
    model, ids = suppressing(logit), random_ids(2, 9)
    written = explain_generate(model, ids, max_new_tokens=4, explain_config=GradELLMConfig(target=target))
    stepwise = GradELLMConfig(target=target, engine="stepwise")
    expected = explain_generate(model, ids, max_new_tokens=4, explain_config=stepwise)
    assert written.sequences[:, 9:].min() >= 5
    assert_same_heatmaps(written.attributions, expected.attributions)
    if target == "logit":
        plain = explain_sequences(small_llama(), written.sequences, 9)
        assert_same_heatmaps(written.attributions, plain.attributions)
        streamed = list(explain_stream(model, ids, max_new_tokens=4))
        assert_same_heatmaps(streamed[-1].attributions, plain.attributions[:, -1, :-1])


@pytest.mark.parametrize("foil", [False, True])
def test_a_token_of_logit_minus_infinity_cannot_be_explained(foil: bool) -> None:
    model, ids = suppressing(-torch.inf), random_ids(1, 8)
    config = GradELLMConfig(target="contrast", contrast_token_ids=2) if foil else GradELLMConfig()
    if not foil:
        ids[0, 6] = 2
    with pytest.raises(InvalidInputError, match="minus infinity, which the model never writes, is no target and no foil"):
        explain_sequences(model, ids, 5, explain_config=config)


@pytest.mark.parametrize("engine", ["replay", "stepwise"])
def test_a_model_without_any_preference_has_heatmaps_of_zeros(engine: Any) -> None:
    model, ids, config = indifferent(), random_ids(1, 7), GradELLMConfig(engine=engine)
    out = explain_generate(model, ids, max_new_tokens=4, explain_config=config)
    assert torch.equal(out.sequences, model.generate(ids, max_new_tokens=4))
    torch.testing.assert_close(out.token_probabilities, torch.full((1, 4), 1 / 97))
    assert out.attributions.count_nonzero() == 0
    assert len(list(explain_stream(model, ids, max_new_tokens=2))) == 2


@pytest.mark.parametrize("model", [suppressing(-torch.inf), indifferent()], ids=["never written", "without preference"])
def test_verify_is_not_confused(model: Any) -> None:
    assert verify(model) <= 1e-4


@pytest.mark.parametrize(("build", "logits"), [(suppressing, (-torch.inf,)), (suppressing, (-1e9,)), (indifferent, ())])
def test_another_attention_implementation_is_compared_by_what_is_left(build: Any, logits: tuple[float, ...]) -> None:
    model, ids = build(*logits, attention="flex_attention", head_dim=16), random_ids(1, 8)
    assert torch.equal(explain_sequences(model, ids, 5).sequences, ids)


class Doubled(nn.Module):
    """Hides a difference behind the size of suppressed logits, if these count."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (1 + (x.shape[1] > 1))


@pytest.mark.filterwarnings("default::gradellm_hf.GradELLMWarning")
def test_the_size_of_suppressed_logits_hides_nothing() -> None:
    model = suppressing(-1e9)
    model.model.layers[2].mlp = Doubled(model.model.layers[2].mlp)
    with pytest.warns(UserWarning, match="replaying several tokens at once changes its logits"):
        explain_sequences(model, random_ids(1, 9), 5)
