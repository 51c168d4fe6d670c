"""Tiny random models that read images, and prompts for them, built by hand as their processors would."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from tests.support.architectures.lifted_precision import lifted_precision
from tests.support.architectures.tiny_configs import _randomize, _to_float64
from tests.support.versions import TAKES_MODALITIES

VOCABULARY, IMAGE, VISION_START, WINDOW = 61, 60, 58, 6
_NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_TEXT = {
    **_NO_SPECIAL_TOKENS,
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 27,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
_VISION = {
    "hidden_size": 12,
    "intermediate_size": 14,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 2,
    "image_size": 4,
}
_QWEN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
_QWEN_VISION = {"depth": 2, "num_heads": 2, "patch_size": 2, "temporal_patch_size": 2, "spatial_merge_size": 2}
_QWEN_IDS = {"image_token_id": IMAGE, "video_token_id": 59, "vision_start_token_id": VISION_START, "vision_end_token_id": 57}


def _qwen(model_type: str, **vision: Any) -> dict[str, Any]:
    vision_config = {**_QWEN_VISION, **vision}
    return {"model_type": model_type, "text_config": {**_TEXT, **_QWEN_ROPE}, "vision_config": vision_config, **_QWEN_IDS}


#: Every model has 3 text layers and 2 vision layers, so that counting the wrong ones shows.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "llava": {
        "model_type": "llava",
        "text_config": {"model_type": "llama", **_TEXT},
        "vision_config": {"model_type": "clip_vision_model", **_VISION},
        "image_token_index": IMAGE,
    },
    "qwen2_vl": _qwen("qwen2_vl", embed_dim=16, hidden_size=32, mlp_ratio=2),
    "qwen2_5_vl": _qwen(
        "qwen2_5_vl", hidden_size=16, intermediate_size=18, out_hidden_size=32, window_size=8, fullatt_block_indexes=[1]
    ),
    "qwen3_vl": _qwen(
        "qwen3_vl",
        hidden_size=16,
        intermediate_size=18,
        out_hidden_size=32,
        num_position_embeddings=16,
        deepstack_visual_indexes=[0, 1],
    ),
    "gemma3": {
        "model_type": "gemma3",
        "text_config": {
            **_TEXT,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        "vision_config": _VISION,
        "mm_tokens_per_image": 4,
        "image_token_index": IMAGE,
    },
    "mistral3": {
        "model_type": "mistral3",
        "text_config": {"model_type": "mistral", **_TEXT, "sliding_window": WINDOW},
        "vision_config": {"model_type": "pixtral", **_VISION, "image_size": 16},
        "image_token_index": IMAGE,
    },
    "idefics3": {
        "model_type": "idefics3",
        "text_config": {"model_type": "llama", **_TEXT},
        "vision_config": {**_VISION, "image_size": 8},
        "image_token_id": IMAGE,
    },
    "smolvlm": {
        "model_type": "smolvlm",
        "text_config": {"model_type": "llama", **_TEXT},
        "vision_config": {**_VISION, "image_size": 8},
        "image_token_id": IMAGE,
    },
    "internvl": {
        "model_type": "internvl",
        "text_config": {"model_type": "qwen2", **_TEXT},
        "vision_config": {**_VISION, "image_size": [8, 8], "patch_size": [2, 2]},
        "image_token_id": IMAGE,
    },
}
#: Its prompt attends in both directions.
PALIGEMMA: dict[str, Any] = {
    "model_type": "paligemma",
    "text_config": {"model_type": "gemma", **_TEXT},
    "vision_config": {"model_type": "siglip_vision_model", **_VISION, "vision_use_head": False},
    "image_token_index": IMAGE,
    "projection_dim": 32,
}
#: Height and width of an image, in the tokens that stand for it.
GRID = {name: (2, 3) if "qwen" in name or name == "mistral3" else (2, 2) for name in CONFIGURATIONS}


def tiny_multimodal(name: str, attn_implementation: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """A model in float64 with seeded random weights, large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    with warnings.catch_warnings(), lifted_precision():  # rotary frequencies in float64 too
        warnings.simplefilter("ignore")
        config = AutoConfig.for_model(**{**CONFIGURATIONS, "paligemma": PALIGEMMA}[name], tie_word_embeddings=False)
        model = AutoModelForImageTextToText.from_config(config, attn_implementation=attn_implementation)
    _to_float64(model)
    _randomize(model, seed)
    return model.eval()


@dataclass(frozen=True)
class Prompt:
    """Rows of text with images in them, padded on the left.

    Attributes:
        inputs: What the model's processor would return.
        image_mask: Where the images are, `[R, P]`.
    """

    inputs: dict[str, Any]
    image_mask: Tensor


def prompt_with_images(name: str, rows: list[list[int]], seed: int = 0) -> Prompt:
    """A prompt for a model of `CONFIGURATIONS`.

    Args:
        rows: For each row, the numbers of text tokens before, between and behind its images: `[2, 5]` has one image.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = GRID[name]
    lines = []
    for pieces in rows:
        ids: list[int] = []
        for i, piece in enumerate(pieces):
            ids += [VISION_START] * ("qwen" in name and i > 0) + [IMAGE] * (height * width if i else 0)
            ids += torch.randint(5, 50, (piece,), generator=generator).tolist()
        lines.append(ids)
    length = max(map(len, lines))
    token_ids = torch.tensor([[0] * (length - len(ids)) + ids for ids in lines])
    attention_mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in lines])
    image_mask = token_ids == IMAGE
    images = [len(pieces) - 1 for pieces in rows]
    inputs = {"input_ids": token_ids, "attention_mask": attention_mask}
    if sum(images):
        inputs |= _images(name, images, height, width, generator)
        if "qwen" in name and TAKES_MODALITIES:
            inputs["mm_token_type_ids"] = image_mask.int()
        if name == "gemma3":
            inputs["token_type_ids"] = image_mask.long()
    return Prompt(inputs, image_mask)


def _images(name: str, images: list[int], height: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if "qwen" in name:  # patches of 2 * 2 pixels, 2 * 2 of them a token
        grid = torch.tensor([[1, 2 * height, 2 * width]] * sum(images))
        return {"pixel_values": noise(sum(images) * 4 * height * width, 3 * 2 * 2 * 2), "image_grid_thw": grid}
    if name == "mistral3":  # the same
        sizes = torch.tensor([[4 * height, 4 * width]] * sum(images))
        return {"pixel_values": noise(sum(images), 3, 4 * height, 4 * width), "image_sizes": sizes}
    if name in ("idefics3", "smolvlm"):  # a row has as many images as any, of which some are zero
        pixels = torch.zeros(len(images), max(images), 3, 8, 8, dtype=torch.float64)
        for row, count in enumerate(images):
            pixels[row, :count] = noise(count, 3, 8, 8)
        return {"pixel_values": pixels}
    size = 8 if name == "internvl" else 4
    return {"pixel_values": noise(sum(images), 3, size, size)}
