"""The heatmaps of any decoder-only model by ordinary autograd, one forward and backward pass a step, of nothing but the model.

Nothing of the package is used. The model runs its own eager attention; what is weighed is read off while it runs:

- where it calls Transformers' attention interface: the arguments and results of each call;
- where it does not: each product of a softmax with something, the softmax being the attention weights and the other
  factor the values.

Either way `z` is what the weights times the values give, before gates, norms and the output projection.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_utils import AttentionInterface

from tests.support.versions import CACHE

from .lifted_precision import lifted_precision


@dataclass
class Attention:
    """One product of attention weights and values, over however many queries were run."""

    output: Tensor  # [R, H, Q, D] in whatever layout the model has it; the gradient is taken here
    weights: Tensor  # [R, H, Q, T]
    value: Tensor  # [R, G, T, D]
    heads_first: Callable[[Tensor], Tensor]  # from the layout of `output` to [R, H, Q, D]


class KeysAreNotTokensError(Exception):
    """A layer attends to something else than one key a token, so there is nothing to attribute to the tokens one by one."""


def reference_heatmaps(model: PreTrainedModel, token_ids: Tensor, prompt_length: int, cached: bool = True) -> Tensor:
    """Signed heatmaps of every attention call, `c_l[n, i] = sum_h A[p, h, i] <d f_n / d z[p, h], v[i, h]>`, `[R, L, N, S]`.

    Args:
        model: In float64, with eager attention.
        token_ids: `[R, P + N]`.
        cached: Run one token a step on a cache whose content is constant; else the whole prefix in every step, without
            a cache.

    Raises:
        NotImplementedError: The model has no cache, and `cached` asks for one.
        KeysAreNotTokensError: There are keys that do not stand for one token each.
    """
    rows, length = token_ids.shape
    steps: list[Tensor] = []
    cache = None
    with lifted_precision(), torch.autograd.graph.allow_mutation_on_saved_tensors():
        if cached and prompt_length > 1:
            with torch.no_grad():
                cache = _prefill(model, token_ids[:, : prompt_length - 1])
        for end in range(prompt_length, length):
            first = end - 1 if cached else 0
            with record_attention(rows) as calls, torch.enable_grad(), patch("torch.no_grad", nullcontext):
                logits, cache = _forward(model, token_ids[:, first:end], first, cache, cached)
            if cached and end == prompt_length:
                _check_keys_are_tokens(model, calls)
            score = logits.gather(1, token_ids[:, end, None]).sum()
            gradients = torch.autograd.grad(score, [call.output for call in calls])
            heatmaps = [_heatmap(call, gradient, rows, length, end) for call, gradient in zip(calls, gradients, strict=True)]
            steps.append(torch.stack(heatmaps, dim=1))
            _detach_state(cache)
            for module in model.modules():  # recurrent_gemma keeps its states in modules
                for name, x in vars(module).items():
                    if isinstance(x, Tensor):
                        setattr(module, name, x.detach())
    return torch.stack(steps, dim=2)


def _prefill(model: PreTrainedModel, token_ids: Tensor) -> Any:
    """As `generate` does where a model does not return its cache: it fills the one that it is given."""
    _, cache = _forward(model, token_ids, 0, None, True)
    if cache is None:
        cache = DynamicCache(config=model.config)
        try:
            _forward(model, token_ids, 0, cache, True)
        except (AttributeError, TypeError, ValueError) as error:  # earlier versions have caches of other types for some models
            raise NotImplementedError(f"{type(model).__name__} needs a cache of its own.") from error
        if cache.get_seq_length() == 0:
            raise NotImplementedError(f"{type(model).__name__} has no cache.")
    return cache


def _forward(model: PreTrainedModel, token_ids: Tensor, first: int, cache: Any, use_cache: bool) -> Any:
    """Runs the positions from `first` on; returns the logits of the last, `[R, V]`, and the cache."""
    rows, queries = token_ids.shape
    inputs: dict[str, Any] = {"input_ids": token_ids, "return_dict": True}
    if _takes(model, "position_ids"):
        inputs["position_ids"] = torch.arange(first, first + queries).repeat(rows, 1)
    if _takes(model, "use_cache"):
        inputs["use_cache"] = use_cache
    if use_cache:
        inputs[CACHE] = cache
    outputs = model(**inputs)
    return outputs.logits[:, -1], outputs.get(CACHE) or cache


def _takes(model: PreTrainedModel, name: str) -> bool:
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _check_keys_are_tokens(model: PreTrainedModel, calls: list[Attention]) -> None:
    """In a step on a cache, the token that is run must be in the last value of each call, and in no other."""
    embedding = model.get_input_embeddings().weight
    for call in calls:
        for others, expected in ((slice(None, -1), False), (slice(-1, None), True)):
            score = call.value[:, :, others].square().sum()
            found = (
                torch.autograd.grad(score, embedding, retain_graph=True, allow_unused=True)[0] if score.requires_grad else None
            )
            if (found is not None and bool(found.any())) != expected:
                raise KeysAreNotTokensError(f"{type(model).__name__} has keys that do not stand for one token each.")


def _heatmap(call: Attention, gradient: Tensor, rows: int, length: int, end: int) -> Tensor:
    """`[R, S]`; the last of a call's keys is the query's own."""
    output, gradient = (call.heads_first(x)[:, :, -1].detach() for x in (call.output, gradient))
    value = call.value.detach().repeat_interleave(gradient.shape[1] // call.value.shape[1], dim=1)
    weights = _effective_weights(call.weights[:, :, -1, : value.shape[2]].detach(), value, output)
    scores = (weights * torch.einsum("rhd,rhtd->rht", gradient, value)).sum(1)
    heatmap = torch.zeros(rows, length)
    keys = min(scores.shape[1], end)
    heatmap[:, end - keys : end] = scores[:, scores.shape[1] - keys :]
    return heatmap


def _effective_weights(weights: Tensor, value: Tensor, output: Tensor) -> Tensor:
    """The weights `[R, H, T]` of which `output [R, H, D]` is the sum with the values `[R, H, T, D]`.

    These are what a model reports, but for granite_swa and granitemoe_swa, which take the part of the attention sink off
    the output and not off the weights: one factor a head.
    """
    reported = torch.einsum("rht,rhtd->rhd", weights, value)
    factor = (output * reported).sum(-1, keepdim=True) / reported.square().sum(-1, keepdim=True)
    weights = weights * torch.where((factor - 1).abs() < 1e-12, 1.0, factor)
    torch.testing.assert_close(torch.einsum("rht,rhtd->rhd", weights, value), output, rtol=1e-9, atol=1e-9)
    return weights


def _detach_state(state: Any, seen: set[int] | None = None) -> None:
    """Replaces every tensor inside a cache (objects, dictionaries, lists) by a constant."""
    seen = set() if seen is None else seen
    if id(state) in seen or not (hasattr(state, "__dict__") or isinstance(state, dict | list)):
        return
    seen.add(id(state))
    items = state if isinstance(state, dict | list) else vars(state)
    for key, item in list(enumerate(items) if isinstance(items, list) else items.items()):
        if isinstance(item, Tensor):
            items[key] = item.detach()
        else:
            _detach_state(item, seen)


@contextmanager
def record_attention(rows: int) -> Iterator[list[Attention]]:
    """Lists what attends while it is open: calls of the interface if there are any, else products with a softmax."""
    interface_calls: list[Attention] = []
    get_interface = getattr(AttentionInterface, "get_interface", None)  # Transformers 5.0 has none: products are found there

    def get_recorded_interface(self: Any, name: str, default: Callable) -> Callable:
        function = get_interface(self, name, default)

        def recorded(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            output, weights = function(module, query, key, value, *args, **kwargs)
            interface_calls.append(Attention(output, weights, value, lambda x: x.transpose(1, 2)))
            return output, weights

        return recorded

    products = _SoftmaxProducts(rows)
    calls: list[Attention] = []
    with ExitStack() as stack:
        if get_interface is not None:
            stack.enter_context(patch.object(AttentionInterface, "get_interface", get_recorded_interface))
        stack.enter_context(products)
        yield calls
    calls.extend(interface_calls or products.found)


#: What may happen to attention weights between the softmax and the product with the values.
_PASSING = frozenset(
    {"dropout", "to", "type", "type_as", "double", "float", "__getitem__", "mul", "__mul__", "view", "reshape", "contiguous"}
)


class _SoftmaxProducts(TorchFunctionMode):
    """Finds `weights @ values` where the weights come from a softmax over as many keys as there are values."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._rows = rows
        self.found: list[Attention] = []
        self._weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if not isinstance(result, Tensor) or not args:
            return result
        from_softmax = any(args[0] is weights for weights in self._weights)
        if name == "softmax" or (from_softmax and name in _PASSING):
            self._weights.append(result)
        elif from_softmax and name in {"matmul", "__matmul__", "bmm"} and args[1].ndim == args[0].ndim:
            self.found.append(self._attention(result, args[0], args[1]))
        return result

    def _attention(self, output: Tensor, weights: Tensor, value: Tensor) -> Attention:
        def heads_first(x: Tensor) -> Tensor:  # some models fold rows and heads into one dimension
            return x if x.ndim == 4 else x.view(self._rows, -1, *x.shape[1:])

        return Attention(output, heads_first(weights), heads_first(value), heads_first)
