"""Transformers' own processors of each family that reads images, for pictures of a few pixels, and models that fit them."""

import contextlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast

from tests.support.versions import IS_NEWEST

PATCH = 4  # pixels
_TEXT = {
    "vocab_size": 352,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
_VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": PATCH,
}
_ROWS = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
#: By family, the special tokens that its processor wants, by the names by which it asks for them; the first stands for images.
_TOKENS: dict[str, dict[str, str]] = {
    "llava": {"image_token": "<image>"},
    "llava_next": {"image_token": "<image>"},
    "qwen2_vl": {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    },
    "gemma3": {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    "mistral3": {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"},
    "idefics3": {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
        **{f"tile_{number}": token for number, token in enumerate(_ROWS)},
    },
    "internvl": {
        "context_image_token": "<IMG_CONTEXT>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "video_token": "<video>",
    },
}
_TOKENS |= dict.fromkeys(("qwen2_5_vl", "qwen3_vl"), _TOKENS["qwen2_vl"]) | {"smolvlm": _TOKENS["idefics3"]}
#: What a template writes for an image; the processor makes the rest of it.
_PLACE = {name: tokens.get("boi_token", next(iter(tokens.values()))) for name, tokens in _TOKENS.items()}
_PLACE |= dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "<|vision_start|><|image_pad|><|vision_end|>")
_QWEN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
_QWEN = {"depth": 1, "num_heads": 2, "patch_size": PATCH, "temporal_patch_size": 2, "spatial_merge_size": 2}
FAMILIES = tuple(_TOKENS)
_LINES = ["Which colour is it? The picture shows a red, green or blue square. user assistant system"] * 3


@cache
def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the special tokens of a family."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_LINES, trainer)
    tokens = list(dict.fromkeys(_TOKENS[family].values()))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        extra_special_tokens={name: token for name, token in _TOKENS[family].items() if not name.startswith("tile_")},
    )
    wrapped.padding_side = "left"
    return wrapped


def template_of(family: str) -> str:
    """A chat template in the style of most models."""
    return (
        "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]: "
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{_PLACE[family]}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
        "{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}[assistant]:{% endif %}"
    )


@cache
def processor_of(family: str) -> Any:
    """The processor of a family, with settings for small pictures."""
    tokenizer = tokenizer_of(family)
    shared = {"tokenizer": tokenizer, "chat_template": template_of(family)}
    strategy = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    square = {"height": 16, "width": 16}
    if family == "llava":
        images = _image_processor("Llava", size={"shortest_edge": 16}, crop_size=square)
        return transformers.LlavaProcessor(images, **shared, **strategy)
    if family == "llava_next":
        pinpoints = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]
        images = _image_processor("LlavaNext", size={"shortest_edge": 16}, crop_size=square, image_grid_pinpoints=pinpoints)
        return transformers.LlavaNextProcessor(images, **shared, **strategy)
    if family.startswith("qwen"):
        size = {"shortest_edge": 256, "longest_edge": 1024}
        images = _image_processor("Qwen2VL", size=size, patch_size=PATCH, merge_size=2)
        name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family]
        return _without_videos(getattr(transformers, f"{name}Processor"))(images, **shared, video_processor=_NO_VIDEOS)
    if family == "gemma3":
        images = _image_processor("Gemma3", size={"height": 32, "width": 32})
        return transformers.Gemma3Processor(images, **shared, image_seq_length=16)
    if family == "mistral3":
        images = _image_processor("Pixtral", size={"longest_edge": 32}, patch_size=PATCH)
        return _pixtral_processor()(images, **shared, patch_size=PATCH, spatial_merge_size=2)
    if family in ("idefics3", "smolvlm"):
        name = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[family]
        images = _image_processor(name, size={"longest_edge": 48}, max_image_size={"longest_edge": 16})
        if family == "idefics3":
            return transformers.Idefics3Processor(images, **shared, image_seq_len=4)
        if not IS_NEWEST and importlib.util.find_spec("torchvision") is None:
            pytest.skip(f"Transformers {transformers.__version__} needs torchvision for SmolVLM's processor")
        kind = _without_videos(transformers.SmolVLMProcessor)
        return kind(images, **shared, image_seq_len=4, video_processor=_NO_VIDEOS)
    images = _image_processor("GotOcr2", size=square, max_patches=6)
    kind = _without_videos(transformers.InternVLProcessor)
    return kind(images, **shared, image_seq_length=4, video_processor=_NO_VIDEOS)


@cache
def model_of(family: str) -> PreTrainedModel:
    """As `fresh_model`; shared, so not to be changed."""
    return fresh_model(family)


def fresh_model(family: str, layers: int = 2, *, strong: bool = False) -> PreTrainedModel:
    """A model with seeded random weights that reads what the processor of its family returns.

    Args:
        layers: Of the text decoder.
        strong: Whether the weights of the vision tower keep the size of what they are given, so that colours differ much.
    """
    torch.manual_seed(0)
    values = _configuration(family)
    values["text_config"] |= {"num_hidden_layers": layers}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**values, tie_word_embeddings=False))
    of_text = set(map(id, [*model.get_decoder().parameters(), *model.lm_head.parameters()]))
    for name, parameter in model.named_parameters():
        is_weight = parameter.ndim > 1 and "position" not in name and "class" not in name and id(parameter) not in of_text
        if is_weight and (strong or not parameter.any()):  # Gemma 3's projection of images begins with zeros
            torch.nn.init.normal_(parameter, std=(parameter.numel() / parameter.shape[0]) ** -0.5)
    return model.eval()


def decoder_inputs(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """What the text decoder gets for text and images, `[batch, P, D]`."""
    found: list[torch.Tensor] = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: found.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        with torch.no_grad():
            model(**inputs, use_cache=False)
    finally:
        hook.remove()
    return found[0]


@contextlib.contextmanager
def without_mixing(model: Any) -> Iterator[None]:
    """Vision layers whose attention adds nothing: a token then depends on its own pixels only."""
    decoder = set(map(id, model.get_decoder().modules()))
    attention = [x for x in model.modules() if type(x).__name__.endswith("Attention") and id(x) not in decoder]
    assert attention
    hooks = [x.register_forward_hook(lambda _, __, out: _zeros(out)) for x in attention]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _zeros(out: Any) -> Any:
    return torch.zeros_like(out) if isinstance(out, torch.Tensor) else (torch.zeros_like(out[0]), *out[1:])


def image_token_id(family: str) -> int:
    """The token that stands for a part of an image."""
    return int(tokenizer_of(family).convert_tokens_to_ids(next(iter(_TOKENS[family].values()))))


def _configuration(family: str) -> dict[str, Any]:
    token = image_token_id(family)
    clip = {"model_type": "clip_vision_model", **_VISION, "image_size": 16}
    llama = {"model_type": "llama", **_TEXT}
    if family.startswith("llava"):
        more = {"image_grid_pinpoints": processor_of(family).image_processor.image_grid_pinpoints} if "next" in family else {}
        layers = {"vision_feature_layer": -1, "image_token_index": token}
        return {"model_type": family, "text_config": llama, "vision_config": clip, **layers, **more}
    if family.startswith("qwen"):
        vision = {
            "qwen2_vl": {"embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2},
            "qwen2_5_vl": {"hidden_size": 24, "intermediate_size": 32, "out_hidden_size": 32, "window_size": 16},
            "qwen3_vl": {
                "hidden_size": 24,
                "intermediate_size": 32,
                "out_hidden_size": 32,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [],
            },
        }[family]
        if family == "qwen2_5_vl":
            vision["fullatt_block_indexes"] = [0]
        ids = tokenizer_of(family).convert_tokens_to_ids
        return {
            "model_type": family,
            "text_config": {**_TEXT, **_QWEN_ROPE},
            "vision_config": {**_QWEN, **vision},
            "image_token_id": token,
            "video_token_id": ids("<|video_pad|>"),
            "vision_start_token_id": ids("<|vision_start|>"),
            "vision_end_token_id": ids("<|vision_end|>"),
        }
    if family == "gemma3":
        text = {**_TEXT, "query_pre_attn_scalar": 8, "sliding_window": 512}
        vision = {**_VISION, "image_size": 32}
        ids = {"image_token_index": token, "boi_token_index": token + 1, "eoi_token_index": token + 2}
        return {"model_type": family, "text_config": text, "vision_config": vision, "mm_tokens_per_image": 16, **ids}
    if family == "mistral3":
        text = {"model_type": "mistral", **_TEXT, "sliding_window": None}
        vision = {"model_type": "pixtral", **_VISION, "image_size": 32}
        return {
            "model_type": family,
            "text_config": text,
            "vision_config": vision,
            "image_token_index": token,
            "vision_feature_layer": -1,
        }
    if family in ("idefics3", "smolvlm"):
        vision = {**_VISION, "image_size": 16}
        return {"model_type": family, "text_config": llama, "vision_config": vision, "image_token_id": token, "scale_factor": 2}
    text = {"model_type": "qwen2", **_TEXT}
    vision = {**_VISION, "image_size": [16, 16], "patch_size": [PATCH, PATCH]}
    return {
        "model_type": family,
        "text_config": text,
        "vision_config": vision,
        "image_token_id": token,
        "vision_feature_layer": -1,
    }


def _image_processor(name: str, **options: Any) -> Any:
    """The one that uses PIL and NumPy: torchvision is not needed. Before Transformers 5.24 its name has no ending."""
    kind = getattr(transformers, f"{name}ImageProcessorPil", None) or getattr(transformers, f"{name}ImageProcessor")
    return kind(**options)


#: In the place of a processor of videos, which needs torchvision.
_NO_VIDEOS = types.SimpleNamespace(model_input_names=[], merge_size=2, num_frames=None, fps=None)


@cache
def _without_videos(kind: type) -> Any:
    """The same class; it takes the place of a processor of videos for one."""

    def check_argument_for_proper_class(self: Any, name: str, argument: Any) -> Any:
        return None if name == "video_processor" else super(made, self).check_argument_for_proper_class(name, argument)

    made = type(kind.__name__, (kind,), {"check_argument_for_proper_class": check_argument_for_proper_class})
    return made


@cache
def _pixtral_processor() -> Any:
    """Its module imports torchvision, and uses nothing of it for pictures that PIL resizes."""
    with _importable("torchvision.transforms.v2.functional"):
        from transformers.models.pixtral.processing_pixtral import PixtralProcessor
    return PixtralProcessor


@contextlib.contextmanager
def _importable(name: str) -> Iterator[None]:
    """An empty module of this name can be imported, unless there is one."""
    try:
        __import__(name)
    except ImportError:
        parts = name.split(".")
        made = {".".join(parts[: i + 1]): types.ModuleType(parts[i]) for i in range(len(parts))}
        for inner, module in made.items():
            module.__path__ = []
            if "." in inner:
                setattr(made[inner.rpartition(".")[0]], inner.rpartition(".")[2], module)
        with patch.dict(sys.modules, made):
            yield
    else:
        yield
