"""Options that name a model, and loading it."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..model import GradELLM


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder, or the name of a model on the Hugging Face Hub")
    group = parser.add_argument_group("loading the model")
    group.add_argument(
        "--device-map",
        type=_device_map,
        default="auto",
        metavar="MAP",
        help="where its layers go: auto, cpu, cuda:0, ... or a JSON object (default: auto)",
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of its weights (default: as in its files)",
    )
    group.add_argument("--gguf-file", metavar="NAME", help="a GGUF file in the folder or repository, to load the weights from")
    group.add_argument("--trust-remote-code", action="store_true", help="run model code that comes with the model")


def load_model(options: argparse.Namespace) -> "GradELLM":
    """The model that the options name, with its tokenizer.

    Raises:
        InvalidInputError: There is no such model, or it cannot be loaded.
    """
    from transformers.utils import logging

    from ..errors import InvalidInputError
    from ..model import GradELLM

    if options.model.startswith(("/", ".", "~")) and not Path(options.model).is_dir():
        raise InvalidInputError(f"There is no folder {options.model!r} to load a model from.")
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    print(f"Loading {options.model} ...", file=sys.stderr)
    further: dict[str, Any] = {"trust_remote_code": True} if options.trust_remote_code else {}
    if options.gguf_file is not None:
        further["gguf_file"] = options.gguf_file
    try:
        return GradELLM.from_pretrained(options.model, device_map=options.device_map, dtype=options.dtype, **further)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidInputError(
            f"No model could be loaded from {options.model!r}: {reason} MODEL is a folder with a config.json, weights and a "
            "tokenizer, or the name of a model on the Hub."
        ) from error


def _device_map(text: str) -> Any:
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not a JSON object: {error}") from error
