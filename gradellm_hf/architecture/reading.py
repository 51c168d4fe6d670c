"""Single facts about a model that are read from its config, its embedding or its `forward`, without running it."""

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


def placeholder_mask(
    model: "PreTrainedModel", token_ids: Tensor, modalities: tuple[str, ...] = ("image", "video", "audio")
) -> Tensor | None:
    """Which tokens stand for a part of an image, a video or a sound; None for models that read text only."""
    names = (f"{modality}_token_{suffix}" for modality in modalities for suffix in ("id", "index"))
    ids = [token_id for name in names if (token_id := getattr(model.config, name, None)) is not None]
    return torch.isin(token_ids, torch.tensor(ids, device=token_ids.device)) if ids else None
