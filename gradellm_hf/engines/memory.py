"""How many steps are explained together: as many as fit in memory, fewer once they did not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..architecture.facts import ModelFacts
from ..errors import GradELLMError
from ..sequences.explained import ExplainedSequences

_LOGITS = 2**25  # elements of the logits of one chunk: 128 MiB in float32
_MASK = 2**22  # elements of the mask of one chunk: 4 MiB, times the query heads that share a key/value head
_TOKENS = 512
_SHARE = 4  # the part of the free memory that a chunk may take is one over this
#: Values a position that are kept for the backward pass: of the logits and their gradient; in a layer, in units of the
#: model's width and of its feed-forward width.
_KEPT_LOGITS, _KEPT_WIDTHS, _KEPT_INTERMEDIATE = 5, 16, 4


def chunk_size(facts: ModelFacts, sequences: ExplainedSequences, num_layers: int) -> int:
    """Number of steps to replay together.

    Bounded so that memory does not grow with the number of steps and only linearly with the length of the sequences, and
    further by the free memory of the devices.

    Args:
        num_layers: Layers that gradients pass through.
    """
    rows, vocabulary = sequences.token_ids.shape[0], facts.vocabulary_size
    config: Any = facts.model.config.get_text_config(decoder=True)
    width = config.hidden_size
    intermediate = getattr(config, "intermediate_size", None) or 4 * width
    intermediate = max(intermediate) if isinstance(intermediate, list | tuple) else intermediate  # one a layer
    values = _KEPT_LOGITS * vocabulary + num_layers * (_KEPT_WIDTHS * width + _KEPT_INTERMEDIATE * intermediate)
    devices = {parameter.device for parameter in facts.model.parameters() if parameter.device.type != "meta"}
    free = min((free_memory(device) for device in devices or {torch.device("cpu")}), default=0)
    tokens = min(_TOKENS, _LOGITS // vocabulary, _MASK // sequences.length, free // (_SHARE * 4 * values))
    return max(1, int(tokens) // rows)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device, memory that PyTorch holds in reserve included."""
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


def release_memory() -> None:
    """Gives memory that only waits to be used again back to the device."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def out_of_memory(sequences: ExplainedSequences) -> GradELLMError:
    """The error where not even one step fits."""
    rows = sequences.token_ids.shape[0]
    return GradELLMError(
        f"Out of memory while explaining a single step of {rows} sequence(s) of {sequences.length} tokens. Explain fewer rows "
        "at once, or fewer layers (`GradELLMConfig(layers=...)`, without `output_layer_attributions`), load the model in a "
        'smaller dtype (`dtype="bfloat16"`), or spread or offload it (`device_map="auto"`).'
    )


@contextmanager
def progress_bar(num_steps: int) -> Iterator[Any]:
    """Shown where explaining takes more than a few seconds, and only in a terminal."""
    from tqdm.auto import tqdm

    options: Any = {"total": num_steps, "desc": "Explaining", "unit": "token", "delay": 3, "disable": None, "leave": False}
    bar: Any = tqdm(**options)
    try:
        yield bar
    finally:
        bar.close()
