"""The adapters of `model_patches`, which all of this package imports from here: its name is one that others use, too."""

import importlib.util
from pathlib import Path

_OURS = Path(__file__).resolve().parents[2] / "model_patches" / "__init__.py"  # the two packages are installed side by side


def _found() -> Path | None:
    """Where Python finds a package or module named `model_patches`."""
    spec = importlib.util.find_spec("model_patches")
    if spec is None:
        return None
    return Path(spec.origin or next(iter(spec.submodule_search_locations or ())))


try:
    from model_patches import ArchitectureAdapter, find_adapter, register_adapter
except Exception as error:  # another one may fail in any way
    found = _found()
    if found is not None and found.resolve() == _OURS and getattr(error, "name", None) != "model_patches":
        raise  # it is ours, and something else is wrong
    raise ImportError(
        f"gradellm_hf comes with a package named `model_patches`, and Python finds "
        f"{'none' if found is None else f'another one of that name, at {str(found)!r}'} ({type(error).__name__}: {error}). "
        "If the other one is a file or folder of yours, rename it, or take its place off PYTHONPATH and sys.path. If it is "
        "installed, use an environment without it; there, install gradellm-hf again as before, with `pip install "
        "--force-reinstall --no-deps`, which puts the right one in place.",
        name="model_patches",
    ) from error

__all__ = ["ArchitectureAdapter", "find_adapter", "register_adapter"]
