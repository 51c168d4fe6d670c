"""`ExplainedStep`: a new token, which is there at once, and what it rests on, which may come later."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..engines.heatmap_sums import Heatmaps
from ..errors import InvalidInputError


@dataclass(frozen=True)
class _Scores:
    attributions: Tensor
    token_probabilities: Tensor
    target_scores: Tensor
    layer_attributions: Tensor | None


@dataclass(eq=False)
class ExplainedStep:
    """One new token of every row, and what it rests on. `R` rows, `P` prompt length.

    With `every=1` all of it is there when the step is yielded. Else a step is yielded with its token, and the rest is filled in
    when its block is explained. To ask for it before raises an `InvalidInputError`; `is_explained` says whether it is there.

    Attributes:
        step: `n`, counted from 0.
        token_ids: The new tokens, `[R]` int64.
        step_mask: False if a row had ended before, `[R]` bool. Its token is padding then, and its scores are 0.
        is_explained: Whether what follows is known.
        attributions: `a[i]`, the contribution of each position before the new token, `[R, P + n]` float32; 0 for padding.
        token_probabilities: Softmax of the raw logits at the new token, `[R]` float32.
        target_scores: The explained scalar `f_n`, `[R]` float32.
        layer_attributions: The heatmap of each explained layer, `[R, layers, P + n]` float32, with
            `output_layer_attributions=True`; else None.

    Examples:
        >>> step = next(explain_stream(model, **inputs, max_new_tokens=4))
        >>> step.step, step.attributions.shape  # n, [R, P + n]
        (0, torch.Size([1, 5]))
    """

    step: int
    token_ids: Tensor
    step_mask: Tensor
    _scores: _Scores | None = field(default=None, init=False, repr=False)

    @property
    def is_explained(self) -> bool:
        return self._scores is not None

    @property
    def attributions(self) -> Tensor:
        return self._explained.attributions

    @property
    def token_probabilities(self) -> Tensor:
        return self._explained.token_probabilities

    @property
    def target_scores(self) -> Tensor:
        return self._explained.target_scores

    @property
    def layer_attributions(self) -> Tensor | None:
        return self._explained.layer_attributions

    @property
    def _explained(self) -> _Scores:
        if self._scores is None:
            raise InvalidInputError(
                f"Step {self.step} is not explained yet: with `every=k`, steps are explained k at a time, after the last of "
                "them was yielded, and the rest at the end of the loop. Ask `is_explained` first, or stream with `every=1`."
            )
        return self._scores


def fill_in(steps: Sequence[ExplainedStep], heatmaps: Heatmaps) -> None:
    """Gives consecutive steps what the heatmaps say of them; those are of these steps alone."""
    by_layer, length = heatmaps.layer_attributions, heatmaps.prompt_length
    for n, step in enumerate(steps):
        step._scores = _Scores(
            attributions=heatmaps.attributions[:, n, : length + n].float(),
            token_probabilities=heatmaps.token_probabilities[:, n].float(),
            target_scores=heatmaps.target_scores[:, n].float(),
            layer_attributions=None if by_layer is None else by_layer[:, :, n, : length + n].float(),
        )
