"""The manifest of a job over many prompts: all that its results depend on. A job continues with the same manifest only."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypedDict

import torch
import transformers
from torch import Tensor, nn

from ..architecture.offloading import offload_hook
from ..architecture.support import unwrap
from ..checks.files import check_version, reading, sealed, unsealed, write_atomically
from ..checks.schema import Natural, check, parse_json
from ..errors import InvalidInputError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_SAMPLE = 64  # values of each weight in the fingerprint; chosen by hand: training changes all, and reading few is quick
_VOLATILE = ("_name_or_path", "transformers_version", "_commit_hash", "_attn_implementation")


class _Model(TypedDict):
    name: str


class Manifest(TypedDict):
    """What the manifest of any job must have."""

    model: _Model
    num_prompts: Natural


def describe_job(
    format_name: str,
    model: Any,
    tokenizer: Any,
    generate_kwargs: dict[str, Any],
    inputs: str,
    num_prompts: int,
    **options: Any,
) -> dict[str, Any]:
    """What the results depend on, as JSON-ready values.

    Args:
        format_name: The kind of job.
        inputs: Fingerprint of the prompts.
        options: Further ones, such as the batch size.
    """
    inner = unwrap(model)
    return {
        "format": format_name,
        "format_version": FORMAT_VERSION,
        "model": {
            "name": inner.config.name_or_path,
            "class": type(inner).__name__,
            "config": fingerprint(_stable(inner.config.to_dict())),
            "generation_config": fingerprint(_stable(inner.generation_config.to_dict())),
            "weights": weights_fingerprint(inner),
        },
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "generate_kwargs": described(generate_kwargs),
        "input": inputs,
        "num_prompts": num_prompts,
        **options,
        "versions": _versions(),
    }


def read_manifest(folder: Path, format_name: str, schema: Any = Manifest) -> dict[str, Any] | None:
    """The manifest of a job; None if the folder has none.

    Args:
        format_name: The kind of job.
        schema: What it must have.

    Raises:
        InvalidInputError: It is not a manifest of this kind of job, damaged, or of a later version.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    manifest = parse_json(content, repr(str(path)))
    if not isinstance(manifest, dict) or manifest.get("format") != format_name:
        raise InvalidInputError(f"{str(path)!r} is not the manifest of such a job, {format_name!r}. Choose another folder.")
    check_version(path, manifest, FORMAT_VERSION)
    with reading(path):
        manifest = unsealed(manifest)
        check(manifest, schema, "the manifest")
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_atomically(folder / MANIFEST, (json.dumps(sealed(manifest), indent=2) + "\n").encode())


def check_same_job(folder: Path, found: dict[str, Any], job: dict[str, Any]) -> None:
    """Raises InvalidInputError if a folder holds the results of another job. The message says what differs.

    The name of the model and the versions of the libraries do not count.
    """
    found, job = _flat(json.loads(json.dumps(found))), _flat(json.loads(json.dumps(job)))
    ignored = ("model.name", "versions.")
    names = [name for name in sorted(found.keys() | job.keys()) if not name.startswith(ignored)]
    differences = [
        f"  {name}: there {found.get(name)!r}, here {job.get(name)!r}" for name in names if found.get(name) != job.get(name)
    ]
    if differences:
        raise InvalidInputError(
            f"{str(folder)!r} holds the results of another job, which this one cannot continue. It differs in\n"
            + "\n".join(differences)
            + "\nRepeat the arguments of that job, or write to another folder."
        )


def fingerprint(value: Any) -> str:
    """A hash of values, the same in every process. What JSON does not know counts with its text, or as `described` has it."""
    try:
        text = json.dumps(value, sort_keys=True, default=_as_text)
    except (TypeError, ValueError):  # keys of several types, or a list that holds itself
        text = json.dumps(described(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _as_text(value: object) -> Any:
    plain = type(value).__repr__ is object.__repr__ and type(value).__str__ is object.__str__  # a text with an address
    return described(value) if plain else str(value)


def weights_fingerprint(model: nn.Module) -> str:
    """A hash of the names, shapes and dtypes of all weights and of some values of each, also of offloaded ones."""
    weights = []
    for module_name, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            hook = offload_hook(module)
            value: Tensor = hook.weights_map[name] if weight.device.type == "meta" and hook is not None else weight
            weights.append([f"{module_name}.{name}", list(value.shape), str(value.dtype), _sample(value.detach())])
    return fingerprint(sorted(weights, key=lambda weight: weight[0]))


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of all that a tokenizer does to a text or a chat, except padding and truncation."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = sorted(tokenizer.get_vocab().items()) if backend is None else json.loads(backend.to_str())
    if isinstance(state, dict):
        state = {name: value for name, value in state.items() if name not in ("padding", "truncation")}
    special = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    return fingerprint([state, special, getattr(tokenizer, "chat_template", None)])


def described(value: Any) -> Any:
    """A value in JSON's terms, the same for equal arguments in every process. An object counts with its class and numbers."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(name): described(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [described(x) for x in value]
    if isinstance(value, slice):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(map(described, value), key=str)
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, nn.Module):  # an assistant
        return weights_fingerprint(value)
    if isinstance(value, transformers.GenerationConfig):
        return _stable(value.to_dict())
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    if hasattr(value, "__qualname__"):
        return value.__qualname__
    numbers = {
        name: x for name, x in getattr(value, "__dict__", {}).items() if isinstance(x, bool | int | float | str | Tensor)
    }
    return {type(value).__qualname__: described(numbers)}


def _stable(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _VOLATILE}


def _sample(weight: Tensor) -> list[Any]:
    if type(weight) not in (Tensor, nn.Parameter) or not weight.numel() or weight.device.type == "meta":
        return []  # a quantised weight of a class of its own, say
    positions = torch.linspace(0, weight.numel() - 1, min(_SAMPLE, weight.numel()), dtype=torch.float64).long()
    index = torch.unravel_index(positions.to(weight.device), weight.shape)
    return weight[index].cpu().double().tolist() if weight.ndim else [weight.item()]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _versions() -> dict[str, str]:
    from .. import __version__

    return {"gradellm_hf": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
