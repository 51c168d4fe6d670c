"""What the variants of Grad-ELLM are made of, from one forward pass over a text and one backward pass per direction.

Shape letters: R rows, P prompt length, N generated tokens, S = P + N, T = S - 1 positions that the model reads, L layers,
H query heads, G key/value heads (M = H / G query heads share one), D head dim, E model width, K likeliest tokens.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradellm_hf import UnsupportedArchitectureError
from gradellm_hf.architecture.adapters import find_adapter
from gradellm_hf.architecture.facts import look_at
from gradellm_hf.architecture.interception import attention_handler
from gradellm_hf.architecture.reading import forward_parameters
from gradellm_hf.architecture.running import explainable
from gradellm_hf.engines.formula import group_heads, grouped_products
from gradellm_hf.engines.position_local import AttentionOptions
from gradellm_hf.methods import saliency
from gradellm_hf.metrics.perturbation import PerturbedText

NUM_LIKELIEST = 5


@dataclass(frozen=True)
class Recording:
    """What a model read at the positions `p = P - 1 + n` that predict the generated tokens, in float32 or wider.

    A gradient of a scalar `f_n` is `d f_n / d z[p]` at the head outputs `z`, before the output projection.

    Attributes:
        prompt_length: `P`.
        num_groups: `G`.
        real: False for padding, `[R, T]`.
        attention: Attention weights of the positions `p`, `[R, L, H, N, T]`.
        mean_attention: Of all positions, mean over the heads, `[R, L, T, T]`.
        values: Of the query heads: those that share a key/value head have the same, `[R, L, H, T, D]`.
        output_norms: `||W_o^h v||`, with the columns of the output projection that belong to a head, `[R, L, H, T]`.
        stream_norms: Norm of the residual stream that enters a layer, at the positions `p`, `[R, L, N]`.
        input_norms: Norm of the embeddings, `[R, T]`.
        gradient: Of the generated token's logit, `[R, L, H, N, D]`.
        expected_gradient: Of the mean logit under the model's distribution, held constant. The gradient of a token's
            log-probability is that of its logit less this one.
        likeliest_gradients: Of the logits of the K likeliest tokens, `[K, R, L, H, N, D]`.
        likeliest_probabilities: `[K, R, N]`, descending.
        runner_up: Which of the likeliest tokens is the first that is not the generated one, `[R, N]`.
        probability: Of the generated token, `[R, N]`.
        saliency: Returns `||d f_n / d x_i||` at the embeddings, `f_n` the logit, `[R, N, T]`. The first call takes one
            backward pass per step.
    """

    prompt_length: int
    num_groups: int
    real: Tensor
    attention: Tensor
    mean_attention: Tensor
    values: Tensor
    output_norms: Tensor
    stream_norms: Tensor
    input_norms: Tensor
    gradient: Tensor
    expected_gradient: Tensor
    likeliest_gradients: Tensor
    likeliest_probabilities: Tensor
    runner_up: Tensor
    probability: Tensor
    saliency: Callable[[], Tensor]

    @functools.cached_property
    def products(self) -> Tensor:
        """`<g[p, h], v[i, h]>` of the generated token's logit, `[R, L, H, N, T]`."""
        return self.gradient @ self.values.mT

    @functools.cached_property
    def contributions(self) -> Tensor:
        """`A[p, h, i] <g[p, h], v[i, h]>` of the generated token's logit, `[R, L, H, N, T]`."""
        return self.attention * self.products

    @functools.cached_property
    def layers(self) -> Tensor:
        """Signed heatmap of each layer, of the generated token's logit, `[R, L, N, T]`."""
        return self.contributions.sum(2)

    @functools.cached_property
    def likeliest_layers(self) -> Tensor:
        """Signed heatmap of each layer, of the log-probabilities of the K likeliest tokens, `[K, R, L, N, T]`."""
        expected = self.layers_of(self.expected_gradient)
        return torch.stack([self.layers_of(gradient) - expected for gradient in self.likeliest_gradients])

    def layers_of(self, gradient: Tensor) -> Tensor:
        """Signed heatmap of each layer for a gradient `[R, L, H, N, D]`: `[R, L, N, T]`."""
        return (self.attention * (gradient @ self.values.mT)).sum(2)

    @property
    def first(self) -> Tensor:
        """True at the first real position of each row, `[R, 1, T]`."""
        return (self.real & (self.real.long().cumsum(1) == 1))[:, None]

    @property
    def own(self) -> Tensor:
        """True at the position `p` of each step, `[1, N, T]`."""
        return self._positions == self._predicting

    @property
    def seen(self) -> Tensor:
        """True for the real positions up to `p` of each step, `[R, N, T]`."""
        return (self._positions <= self._predicting) & self.real[:, None]

    @property
    def _positions(self) -> Tensor:
        return torch.arange(self.real.shape[1], device=self.real.device)[None, None]

    @property
    def _predicting(self) -> Tensor:
        steps = torch.arange(self.attention.shape[3], device=self.real.device)
        return (self.prompt_length - 1 + steps)[None, :, None]


_last: tuple[tuple, Recording] | None = None


def last_recording(text: PerturbedText) -> Recording:
    """`record(text)`, made again only if the model, its precision or the text differs from the last call.

    It is assumed that the weights have not changed.
    """
    global _last
    tensors = (text.token_ids, text.real, text.step_mask)
    key = (id(text.model), text.model.dtype, text.prompt_length, text.token_ids.shape, *map(_bytes, tensors))
    if _last is None or _last[0] != key:  # the recording keeps its model alive, and so the model's id its own
        _last = None  # before the next one takes memory
        _last = key, record(text)
    return _last[1]


def record(text: PerturbedText) -> Recording:
    """Records a text.

    Raises:
        UnsupportedArchitectureError: The model does not look up its attention function in Transformers' AttentionInterface, or
            its attention layers differ in their sizes.
    """
    model, length = text.model, text.token_ids.shape[1] - 1
    if not look_at(model).calls_interface:
        raise UnsupportedArchitectureError(f"`{model.config.model_type}` does not call Transformers' AttentionInterface.")
    last, precision = slice(-text.num_steps, None), torch.promote_types(model.dtype, torch.float32)
    heads = _Heads(last, precision)
    real, embeddings = text.real[:, :length], text.embeddings[:, :length]
    with explainable(model, padded=not bool(text.real.all())), torch.enable_grad():
        with attention_handler(model, heads.attend):
            optional = {"position_ids": text.position_ids[:, :length], "use_cache": False, "logits_to_keep": text.num_steps}
            out = model(
                inputs_embeds=embeddings.clone().requires_grad_(),
                attention_mask=real.long(),
                output_hidden_states=True,
                return_dict=True,
                **{name: value for name, value in optional.items() if name in forward_parameters(model)},
            )
        logits = out.logits[:, last]
        probabilities = logits.detach().to(precision).softmax(-1)
        chosen = text.token_ids[:, text.prompt_length :]
        likeliest = probabilities.topk(min(NUM_LIKELIEST, probabilities.shape[-1]))
        tokens = [chosen, *likeliest.indices.unbind(-1)]
        directions = [probabilities, *(nn.functional.one_hot(ids, probabilities.shape[-1]) for ids in tokens)]
        expected_gradient, gradient, *likeliest_gradients = (
            heads.gradients(logits, direction.to(logits.dtype)) for direction in directions
        )
    if len({(tuple(x.shape), groups) for x, groups in zip(heads.values, heads.num_groups, strict=True)}) > 1:
        raise UnsupportedArchitectureError(f"The attention layers of `{model.config.model_type}` differ in their sizes.")
    values = torch.stack(heads.values, dim=1)
    streams = [x[:, last].detach().to(precision) for x in out.hidden_states[: len(heads.outputs)]]
    return Recording(
        prompt_length=text.prompt_length,
        num_groups=heads.num_groups[0],
        real=real,
        attention=torch.stack(heads.attention, dim=1),
        mean_attention=torch.stack(heads.mean_attention, dim=1),
        values=values,
        output_norms=_output_norms(model, values),
        stream_norms=torch.stack([x.norm(dim=-1) for x in streams], dim=1),
        input_norms=embeddings.to(precision).norm(dim=-1),
        gradient=gradient,
        expected_gradient=expected_gradient,
        likeliest_gradients=torch.stack(likeliest_gradients),
        likeliest_probabilities=likeliest.values.movedim(-1, 0),
        runner_up=(likeliest.indices[..., 0] == chosen).long(),
        probability=probabilities.gather(-1, chosen[..., None])[..., 0],
        saliency=functools.cache(lambda: _saliency(text)),
    )


def position_local_attention(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> tuple[Tensor, Tensor]:
    """Attention in which autograd sees the keys and values of all positions but the query's own as constants.

    Then one backward pass from the sum over the steps gives the gradient of each step (docs/mathematics.md).

    Args:
        query: `[R, H, T, D]`.
        key, value: `[R, G, T, D]`.

    Returns:
        Head outputs `[R, H, T, D]`, and attention weights `[R, H, T, T]`.
    """
    query = group_heads(query, key.shape[1])
    own_key, own_value = ((x - x.detach())[:, :, None] for x in (key, value))  # zero, with a gradient
    products = grouped_products(query, key.detach()) + torch.diag_embed((query * own_key).sum(-1))
    weights = options.weights(options.scores(products))
    output = weights @ value.detach()[:, :, None] + weights.diagonal(dim1=-2, dim2=-1)[..., None] * own_value
    return output.flatten(1, 2), weights.flatten(1, 2)


class _Heads:
    """Takes the place of the attention function, and keeps what the heads of each layer do."""

    def __init__(self, last: slice, precision: torch.dtype):
        self._last, self._precision = last, precision
        self.attention: list[Tensor] = []
        self.mean_attention: list[Tensor] = []
        self.values: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.num_groups: list[int] = []

    def attend(
        self,
        own: Callable,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **keywords: Any,
    ) -> tuple[Tensor, None]:
        options = AttentionOptions.from_call(module, query, key, attention_mask, scaling, keywords)
        heads, groups = query.shape[1], value.shape[1]
        output, weights = position_local_attention(*(x.to(self._precision) for x in (query, key, value)), options)
        self.outputs.append(output)
        weights, values = weights.detach(), value.detach().to(self._precision)
        self.attention.append(weights[:, :, self._last].clone())
        self.mean_attention.append(weights.mean(1))
        self.values.append(values.repeat_interleave(heads // groups, dim=1))
        self.num_groups.append(groups)
        return output.transpose(1, 2).to(query.dtype).contiguous(), None

    def gradients(self, logits: Tensor, direction: Tensor) -> Tensor:
        """Gradient of the logits `[R, N, V]` along a direction at the head outputs, `[R, L, H, N, D]`."""
        gradients = torch.autograd.grad(logits, self.outputs, direction, retain_graph=True)
        return torch.stack([gradient[:, :, self._last] for gradient in gradients], dim=1)


def _output_norms(model: Any, values: Tensor) -> Tensor:
    adapter, (heads, dim) = find_adapter(model), (values.shape[2], values.shape[4])
    norms = []
    for layer, module in enumerate(look_at(model).attention):
        projection = adapter.output_projection_of(module)
        weight = projection.weight.detach().to(values.dtype)  # type: ignore[union-attr, operator]
        weight = weight if isinstance(projection, nn.Linear) else weight.T  # GPT-2 has its own kind of linear layer
        columns = weight.unflatten(1, (heads, dim)).transpose(0, 1)
        squares = ((values[:, layer] @ (columns.mT @ columns)) * values[:, layer]).sum(-1)
        norms.append(squares.clamp_min(0).sqrt())
    return torch.stack(norms, dim=1)


def _saliency(text: PerturbedText) -> Tensor:
    mask = torch.cat([text.real[:, : text.prompt_length], text.step_mask], dim=1)
    return saliency(text.model, text.token_ids, text.prompt_length, mask.long())[..., :-1]


def _bytes(x: Tensor) -> bytes:
    return x.cpu().numpy().tobytes()
