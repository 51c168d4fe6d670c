"""FlashTrace by its authors' package flashtrace, called as this package's methods are."""

import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..architecture.plain_attention import attention_implementation
from ..errors import GradELLMError
from ..metrics.perturbation import PerturbedText
from .registry import Method, heatmaps

_SETUP = "pip install --no-deps flashtrace==0.1.1"  # what it depends on is for its pictures and its own metrics


def flash_trace() -> Method:
    """What each layer's attention adds to the residual stream at a generated token, by how close it is to the sum.

    These are the information flow routes that FlashTrace rests on, for each generated token by itself. Only its module `core`
    is run. It knows models that are built as Llama and Qwen are, and takes each token's own position, which has read the token.

    Source: FlashTrace, arXiv 2602.01914, by flashtrace 0.1; Ferrando & Voita 2024 (arXiv 2403.00824).

    Returns:
        A method; see `Method`.

    Raises:
        GradELLMError: When the returned method is called, flashtrace is not installed, or does not know the model.
        InvalidInputError, UnsupportedArchitectureError: As for `Method`, when the returned method is called.

    Examples:
        >>> callable(flash_trace())
        True
    """

    def method(model: Any, sequences: Tensor, prompt_length: int, attention_mask: Tensor | None = None, /) -> Tensor:
        text = PerturbedText(model, sequences, prompt_length, attention_mask)
        scores = text.embeddings.new_zeros(text.num_rows, text.num_steps, text.token_ids.shape[1], dtype=torch.float32)
        for row in range(text.num_rows):
            first, last = int(text.real[row].int().argmax()), prompt_length + int(text.step_mask[row].sum())
            if last > prompt_length:
                found = _routes(text.model, text.token_ids[row : row + 1, first:last], prompt_length - first)
                scores[row, : len(found), first:last] = found.to(scores)
        return heatmaps(text, scores)

    return method


def traced_routes(model: PreTrainedModel, token_ids: Tensor, prompt_length: int, result: int, hops: int) -> Tensor:
    """Importance of each token for those from `result` on, also through the generated ones before these, `[hops + 1, S]`.

    Args:
        token_ids: A text without padding, `[1, S]`.
        result: The position of the first token of the result.
        hops: How often, at most, the generated tokens before it are replaced by what they rest on. The first row: never.

    Raises:
        GradELLMError: As for `flash_trace`.
    """

    def hop(core: Any, read: tuple[Any, ...]) -> Any:
        found = core.compute_multi_hop_ifr(result, token_ids.shape[1] - 1, (prompt_length, result - 1), hops, *read)
        return torch.stack([found.observation["base"], *found.observation["per_hop"]]).cumsum(0)

    importance: Tensor = _run(model, token_ids, hop)
    return importance


def _routes(model: PreTrainedModel, token_ids: Tensor, prompt_length: int) -> Tensor:
    """Importance of each token for each generated one of a text without padding, `[N, S]`."""

    def each(core: Any, read: tuple[Any, ...]) -> Any:
        found = core.compute_ifr_for_all_positions(*read, sink_range=(prompt_length, token_ids.shape[1] - 1))
        return found.token_importance_matrix

    importance: Tensor = _run(model, token_ids, each)
    return importance


def _run(model: PreTrainedModel, token_ids: Tensor, use: Callable[[Any, tuple[Any, ...]], Any]) -> Any:
    """What `use` makes of the module `core` and of what its functions take first: the model as it read the text."""
    core, dtype = _core(), model.dtype
    try:
        metadata = core.extract_model_metadata(model)
        cache, hooks = core.attach_hooks(metadata.layers, dtype)
        try:
            with torch.inference_mode(False), torch.no_grad(), attention_implementation(model, "eager"):
                out = model(input_ids=token_ids, use_cache=False, output_attentions=True, return_dict=True)
        finally:
            for hook in hooks:
                hook.remove()
        sizes = {name: getattr(metadata, name) for name in _SIZES}
        parameters = core.IFRParameters(sequence_length=token_ids.shape[1], model_dtype=dtype, **sizes, **_CHUNKS)
        return use(core, (cache, out.attentions, core.build_weight_pack(metadata, dtype), parameters))
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise GradELLMError(
            f"flashtrace failed on `{model.config.model_type}`: {type(error).__name__}: {error}. It knows models that are "
            "built as Llama and Qwen are."
        ) from error


_SIZES = ("n_layers", "n_heads_q", "n_kv_heads", "head_dim", "group_size", "d_model")
_CHUNKS = {"chunk_tokens": 128, "sink_chunk_tokens": 32}  # its own defaults


@functools.cache
def _core() -> Any:
    """The package's module `core`, without the package's own imports, which draw pictures."""
    package = importlib.util.find_spec("flashtrace")
    if package is None or not package.origin:
        raise GradELLMError(f"`flash_trace` needs flashtrace, which is not installed: {_SETUP}")
    spec: Any = importlib.util.spec_from_file_location("flashtrace_core", Path(package.origin).with_name("core.py"))
    core: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = core  # dataclasses look there for types
    spec.loader.exec_module(core)
    core.tqdm = lambda layers, **_: layers
    return core
