"""Options that name a model, and loading it."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..configuration import GradELLMConfig
    from ..model import GradELLM

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder, or the name of a model on the Hugging Face Hub")
    group = parser.add_argument_group("loading the model")
    group.add_argument(
        "--device-map",
        type=device_map,
        default="auto",
        metavar="MAP",
        help="where its layers go: auto, cpu, cuda:0, ... or a JSON object (default: auto; each of several processes: its own)",
    )
    group.add_argument("--dtype", choices=DTYPES, default="auto", help="of its weights (default: as in its files)")
    group.add_argument("--gguf-file", metavar="NAME", help="a GGUF file in the folder or repository, to load the weights from")
    group.add_argument("--trust-remote-code", action="store_true", help="run model code that comes with the model")


def add_head_weights_argument(group: Any) -> None:
    group.add_argument(
        "--head-weights",
        metavar="FILE",
        help="weights of the heads, as `gradellm calibrate` writes them; or a repository on the Hub that has them",
    )


def use_own_device(options: argparse.Namespace, state: Any) -> None:
    """Lets each of several processes have the model on its own device, if the options do not say otherwise.

    Args:
        state: The processes; see `jobs.processes`.
    """
    if state.num_processes > 1 and options.device_map == "auto":
        options.device_map = {"": state.device}


def load_model(options: argparse.Namespace, explain_config: "GradELLMConfig | None" = None) -> "GradELLM":
    """The model that the options name, with its tokenizer.

    Raises:
        InvalidInputError: There is no such model or device, or it cannot be loaded.
    """
    from transformers.utils import logging

    from ..engines.memory import is_out_of_memory
    from ..errors import GradELLMError, InvalidInputError
    from ..model import GradELLM

    check_model(options)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    print(f"Loading {options.model} ...", file=sys.stderr, flush=True)
    further: dict[str, Any] = {"trust_remote_code": True} if options.trust_remote_code else {}
    if options.gguf_file is not None:
        further["gguf_file"] = options.gguf_file
    try:
        return GradELLM.from_pretrained(
            options.model, device_map=options.device_map, dtype=options.dtype, explain_config=explain_config, **further
        )
    except (GradELLMError, ImportError):
        raise
    except Exception as error:  # of a damaged file, any
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        if not isinstance(error, OSError | ValueError):
            reason = f"{type(error).__name__}: {reason}"
        raise InvalidInputError(
            f"No model could be loaded from {options.model!r}: {reason} MODEL is a folder with a config.json, weights and a "
            "tokenizer, or the name of a model on the Hub."
        ) from error


def check_model(options: argparse.Namespace) -> None:
    """Raises InvalidInputError if there is no such model, or no such device, as far as this is known without loading."""
    from ..errors import InvalidInputError

    path = Path(options.model)
    if not options.model or path.is_file():
        what = "is a file" if options.model else "is empty"
        raise InvalidInputError(f"MODEL {options.model!r} {what}. Name the folder with the model's config.json.")
    if options.model.startswith(("/", ".", "~")) and not path.is_dir():
        raise InvalidInputError(f"There is no folder {options.model!r} to load a model from.")
    if options.gguf_file is not None and path.is_dir() and not (path / options.gguf_file).is_file():
        raise InvalidInputError(f"There is no file {options.gguf_file!r} in {options.model!r}; see --gguf-file.")
    places = options.device_map
    if isinstance(places, dict):
        for place in places.values():
            _check_place(place, ("disk",))
    else:
        _check_place(places, _STRATEGIES)


def device_map(text: str) -> Any:
    """For `type=` of an option: a word, or a JSON object of numbers and words."""
    if not text.startswith("{"):
        return text
    try:
        places = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not a JSON object: {error}") from error
    if not places or not all(isinstance(place, str) or type(place) is int for place in places.values()):
        raise argparse.ArgumentTypeError(f"a device, as a word or a number, for each module is expected, got {text}")
    return places


def _check_place(place: Any, words: tuple[str, ...]) -> None:
    import torch

    from ..errors import InvalidInputError

    if place in words or isinstance(place, torch.device):
        return
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = "" if there is None else there.type
    number = torch.accelerator.device_count() if there is not None else 0
    known = ["cpu", *(f"{kind}:{index}" for index in range(number))]
    try:
        device = torch.device(place)
    except RuntimeError:
        device = None
    if device is None or f"{device.type}:{device.index or 0}" not in (*known, "cpu:0"):
        raise InvalidInputError(
            f"--device-map: there is no device {place!r} here. There are {', '.join(known)}; or let it be one of "
            f"{', '.join(words)}."
        )
