"""Which model types Transformers registers for causal language modelling, and which of them are decoder-only text models.

Nothing here names a type: what is left out is left out for a property of its configuration or of its model, so a type that
a later Transformers adds is classified and tested without an edit.
"""

import functools

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .survey import is_causal


def registered_types() -> list[str]:
    """Every type that `AutoModelForCausalLM` knows, alphabetically."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@functools.cache
def why_not_decoder_only(model_type: str) -> str | None:
    """Why a registered type is no decoder-only text model, or None if it is one."""
    config_class = CONFIG_MAPPING[model_type]
    if getattr(config_class, "is_encoder_decoder", False):
        return "encoder-decoder"
    models = sorted(name for name, part in config_class.sub_configs.items() if getattr(part, "model_type", "auto"))
    if models:
        return f"composite of models ({', '.join(models)})"
    if config_class.model_type != model_type:
        return f"another name of `{config_class.model_type}`"
    if hasattr(config_class, "is_decoder") and (hasattr(config_class, "add_cross_attention") or not is_causal(model_type)):
        return "encoder, unless `is_decoder` is set"
    return None


def decoder_only_types() -> list[str]:
    return [model_type for model_type in registered_types() if why_not_decoder_only(model_type) is None]
