"""What tests have to know of the installed version of Transformers. What it lacks is skipped, and says so."""

import dataclasses
import inspect
from typing import Any

import pytest
import transformers
from transformers import PreTrainedConfig, Qwen2VLForConditionalGeneration
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import ModelOutput

#: What this version calls the cache, in calls and in what they return.
CACHE = "cache" if hasattr(ModelOutput, "past_key_values") else "past_key_values"
#: Whether every architecture must run; of earlier versions, some lack a kernel, or have a fault of their own.
IS_NEWEST = CACHE == "cache"
#: Whether models of the Qwen family are told which of the tokens are images; before, they look at the tokens themselves.
TAKES_MODALITIES = "mm_token_type_ids" in inspect.signature(Qwen2VLForConditionalGeneration.forward).parameters
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])


def config_fields(config_class: type) -> dict[str, Any]:
    """The fields of a configuration with their defaults: dataclasses since 5.4, before it the arguments of a function."""
    if dataclasses.is_dataclass(config_class):
        return {field.name: field.default for field in dataclasses.fields(config_class)}
    parameters = inspect.signature(config_class).parameters.values()
    special_tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))  # of any, by `**kwargs`
    return {**special_tokens, **{x.name: x.default for x in parameters if x.default is not x.empty}}


def chosen_attention(config: PreTrainedConfig) -> str | None:
    """None: the attention that Transformers chooses. Eager if it chooses sdpa and that would ignore soft-capping."""
    return "eager" if VERSION < (5, 22) and getattr(config, "attn_logit_softcapping", None) else None


def needs_type(model_type: str) -> None:
    """Skips the test in versions that lack this type of model."""
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"Transformers {transformers.__version__} has no `{model_type}`")


def since(version: str, what: str) -> pytest.MarkDecorator:
    """A mark: the test is skipped in versions before `version`, such as "5.17", which lack `what`."""
    needed = tuple(map(int, version.split(".")))
    return pytest.mark.skipif(needed > VERSION, reason=f"Transformers {transformers.__version__} has no {what}")
