"""How many steps are explained together: as many as fit into memory, and fewer after they did not fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..architecture.facts import ModelFacts
from ..errors import GradELLMError
from ..sequences.explained import ExplainedSequences

# The limits of a chunk. More than 128 steps per chunk are hardly faster ("explanation alone" in benchmarks/RESULTS.md), so
# they are chosen by hand: memory stays small, and a row still gets 128 steps.
_TOKENS = 512  # steps, times rows
_LOGITS = 2**25  # elements of the logits: 128 MiB in float32; 128 steps of a vocabulary of 262,144
_MASK = 2**22  # elements of the mask: 4 MiB per query head of a key/value head; 128 steps of a text of 32,768 tokens
_SHARE = 4  # a chunk may take a fourth of the free memory: the numbers below are an estimate, and others need memory too
# Values that are kept for the backward pass, per position. Of each logit: itself, its float32 copy, the gradients of both,
# and a softmax. Of a layer, in units of the model's width and of its feed-forward width: what autograd keeps in the layers of
# Gemma 3, counted with `saved_tensors_hooks` (in Llama and Qwen3 it is 11 and 4).
_KEPT_LOGITS, _KEPT_WIDTHS, _KEPT_INTERMEDIATE = 5, 16, 4


def chunk_size(facts: ModelFacts, sequences: ExplainedSequences, num_layers: int) -> int:
    """Number of steps to replay together.

    It is limited so that memory does not grow with the number of steps, and grows only linearly with the length of the
    sequences. It is also limited by the free memory of the devices.

    Args:
        num_layers: Layers that gradients pass through.
    """
    rows, vocabulary = sequences.token_ids.shape[0], facts.vocabulary_size
    config: Any = facts.model.config.get_text_config(decoder=True)
    width = config.hidden_size
    intermediate = getattr(config, "intermediate_size", None) or 4 * width
    intermediate = max(intermediate) if isinstance(intermediate, list | tuple) else intermediate  # some have one per layer
    values = _KEPT_LOGITS * vocabulary + num_layers * (_KEPT_WIDTHS * width + _KEPT_INTERMEDIATE * intermediate)
    devices = {parameter.device for parameter in facts.model.parameters() if parameter.device.type != "meta"}
    free = min((free_memory(device) for device in devices or {torch.device("cpu")}), default=0)
    tokens = min(_TOKENS, _LOGITS // vocabulary, _MASK // sequences.length, free // (_SHARE * 4 * values))
    return max(1, int(tokens) // rows)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device, including memory that PyTorch holds in reserve."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    import psutil  # accelerate depends on it

    available: int = psutil.virtual_memory().available
    return available


def is_out_of_memory(error: BaseException) -> bool:
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, Exception) and should_reduce_batch_size(error)
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether nothing more runs on the device until a new start, as after a failed assertion in one of its kernels."""
    named = getattr(torch, "AcceleratorError", None)  # since torch 2.8; before it, an error without a name of its own
    return isinstance(error, named) if named else isinstance(error, RuntimeError) and "CUDA error: " in str(error)


def release_memory() -> None:
    """Gives memory that PyTorch holds in reserve back to the device."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def out_of_memory(sequences: ExplainedSequences) -> GradELLMError:
    """The error if not even one step fits."""
    rows = sequences.token_ids.shape[0]
    return GradELLMError(
        f"Out of memory while explaining a single step of {rows} sequence(s) of {sequences.length} tokens. Explain fewer rows "
        "at once, or fewer layers (`GradELLMConfig(layers=...)`, without `output_layer_attributions`), load the model in a "
        'smaller dtype (`dtype="bfloat16"`), or spread or offload it (`device_map="auto"`).'
    )


@contextmanager
def progress_bar(num_steps: int) -> Iterator[Any]:
    """Shown after three seconds of explaining, and only in a terminal."""
    from tqdm.auto import tqdm

    options: Any = {"total": num_steps, "desc": "Explaining", "unit": "token", "delay": 3, "disable": None, "leave": False}
    bar: Any = tqdm(**options)
    try:
        yield bar
    finally:
        bar.close()
