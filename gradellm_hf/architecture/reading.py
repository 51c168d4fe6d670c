"""Single facts about a model that are read from its config, its embedding or its `forward`, without running it."""

import inspect
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TABLE_IN_EACH_CALL = {"mpt": "max_seq_len"}  # the table is made in each call, of the size in this entry of the config


def forward_parameters(model: nn.Module) -> frozenset[str]:
    """The names of what `model.forward` takes."""
    return frozenset(inspect.signature(model.forward).parameters)


def input_device(model: "PreTrainedModel") -> torch.device:
    """The device on which a model reads token ids, also if accelerate keeps its weights elsewhere."""
    embedding: Any = model.get_input_embeddings()
    device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    device = torch.device(embedding.weight.device if device is None else device)
    return torch.device("cpu") if device.type == "meta" else device


def vocabulary_size(model: "PreTrainedModel") -> int:
    """Number of token ids that the model can read."""
    embedding: Any = model.get_input_embeddings()
    sizes = (getattr(module, "num_embeddings", None) for module in embedding.modules())  # PEFT's wrappers have none
    size = next((size for size in sizes if size is not None), None)  # weights may be packed, or in other processes
    return int(embedding.weight.shape[0] if size is None else size)


def placeholder_ids(model: "PreTrainedModel") -> dict[str, list[int]]:
    """By modality, the tokens that stand for a part of an image, a video or a sound, as the config names them."""
    names = {modality: [f"{modality}_token_{suffix}" for suffix in ("id", "index")] for modality in ("image", "video", "audio")}
    found = {
        modality: [token_id for name in options if (token_id := getattr(model.config, name, None)) is not None]
        for modality, options in names.items()
    }
    return {modality: ids for modality, ids in found.items() if ids}


def position_limit(model: Any) -> int | None:
    """Number of positions in the model's table of them, learned or fixed; None if it computes any position."""
    config = model.config.get_text_config(decoder=True)
    made_from = _TABLE_IN_EACH_CALL.get(config.model_type)
    if made_from is not None:
        length: int = getattr(config, made_from)
        return length
    limit: int | None = getattr(config, "max_position_embeddings", None)
    embeddings = (
        (name, module.num_embeddings - getattr(module, "offset", 0))
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    )
    buffers = ((name, buffer.shape[0]) for name, buffer in model.named_buffers() if buffer.ndim == 2)
    tables = (size for name, size in chain(embeddings, buffers) if _names_positions(name.rpartition(".")[2]))
    return limit if limit in tables else None


def _names_positions(name: str) -> bool:
    return "pos" in name or name == "wpe"
