"""Models and tokenizers from folders and from the Hub."""

import os
from typing import Any

from ..errors import InvalidInputError

_SHARED_OPTIONS = (  # the tokenizer needs them too
    "cache_dir",
    "config",
    "force_download",
    "gguf_file",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)


def checked_model_config(config: Any) -> Any:
    """Raises InvalidInputError if it is not the configuration of a model."""
    from transformers import PreTrainedConfig

    if not isinstance(config, PreTrainedConfig):
        raise InvalidInputError(
            "`config` must be the model's configuration, as AutoConfig.from_pretrained returns it, got "
            f"{type(config).__name__}. What to explain and how goes into `explain_config`."
        )
    return config


def load_model(name: str | os.PathLike[str], device_map: Any, dtype: Any, kwargs: dict[str, Any]) -> Any:
    """A model in evaluation mode. Arguments as for `GradELLM.from_pretrained`."""
    from transformers import AutoModelForCausalLM

    if kwargs.get("distributed_config") is not None and device_map == "auto":
        device_map = None  # the processes share the model out
    model: Any = AutoModelForCausalLM.from_pretrained(name, device_map=device_map, dtype=dtype, **kwargs)
    return model.eval()


def load_tokenizer(name: str | os.PathLike[str], kwargs: dict[str, Any]) -> Any:
    """The tokenizer that lies with a model; it pads on the left. Arguments as for `GradELLM.from_pretrained`."""
    from transformers import AutoTokenizer

    shared = {option: kwargs[option] for option in _SHARED_OPTIONS if option in kwargs}
    return AutoTokenizer.from_pretrained(name, padding_side="left", **shared)
