"""Several CUDA devices, simulated in a CPU build of PyTorch, for tests of models that are spread over devices.

After `install()`, this process has the devices `cuda:0` to `cuda:3`. Tensors on them are of device type "cuda" and have an
index; their memory is the host's, and each operation runs its CPU kernel (see `devices.cpp`). What CUDA refuses is refused:
mixing tensors of two devices raises CUDA's own error. Memory that nobody has written holds NaN. The bytes of each device are
counted, and an allocation beyond `set_capacity` raises `torch.OutOfMemoryError`. Autograd runs a thread for each device.
Transformers and accelerate run as they are: `dispatch_model`, `device_map="auto"`, offloading to CPU and disk.

There are no streams (one per device, always done), no fused or flash kernels, no inductor, and no random state of a device.
Nothing can be taken back, so tests run in a process of their own: `tests/architecture/test_devices.py`.

`python -m tests.support.simulated_devices` builds it, once; importing the package does nothing.
"""

import hashlib
import importlib
import importlib.util
import os
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import torch

from .torch_cuda import replace_functions

_VERSION = "2.13"  # of PyTorch, to whose internals `devices.cpp` is written
_SOURCE = Path(__file__).with_name("devices.cpp")
_CACHE = Path(__file__).parents[3] / ".cache" / "simulated_devices"
_NAME = "simulated_devices"


class CannotBuildError(Exception):
    """There are no simulated devices on this machine; says why."""


def why_not_here() -> str | None:
    """Why they are not even to be built with the installed PyTorch; None if they are."""
    if not torch.__version__.startswith(f"{_VERSION}."):
        return f"simulated devices are written for PyTorch {_VERSION}, this is {torch.__version__}"
    return "this PyTorch has devices of its own" if torch.version.cuda or torch.version.hip else None


def build() -> Path:
    """The compiled library; compiles it if that has not been done (45 s).

    Raises:
        CannotBuildError: PyTorch is another one, or the compiler does not succeed.
    """
    if (reason := why_not_here()) is not None:
        raise CannotBuildError(reason)
    built_from = (_SOURCE.read_text(), torch.__version__, sysconfig.get_config_var("SOABI"))
    library = _CACHE / f"{_NAME}-{hashlib.sha256(repr(built_from).encode()).hexdigest()[:16]}.so"
    if not library.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE) as folder:
            _compile(Path(folder) / library.name)
            (Path(folder) / library.name).replace(library)
    return library


def _compile(library: Path) -> None:
    from torch.utils import cpp_extension

    includes = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    libraries = cpp_extension.library_paths()
    command = [
        *(os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-fPIC", "-shared", f"-DTORCH_EXTENSION_NAME={_NAME}"),
        *(f"-isystem{path}" for path in includes),
        *(str(_SOURCE), "-o", str(library)),
        *(option for path in libraries for option in (f"-L{path}", f"-Wl,-rpath,{path}")),
        *("-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise CannotBuildError(f"simulated devices need a C++ compiler: {error}") from error
    if done.returncode:
        raise CannotBuildError(f"simulated devices do not compile:\n{done.stderr[-3000:]}")


def install() -> Any:
    """Gives this process its devices, for good; returns the library, which counts their memory (see the end of `devices.cpp`).

    Raises:
        CannotBuildError: As for `build`.
    """
    spec = importlib.util.spec_from_file_location(_NAME, build())
    assert spec is not None
    assert spec.loader is not None
    for package in ("peft", "bitsandbytes"):  # choose what to load by the devices that there are when they are imported
        if importlib.util.find_spec(package) is not None:
            importlib.import_module(package)
    importlib.import_module("torch._dynamo")  # keeps a table of the functions of torch.cuda: the real ones

    library: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    replace_functions(library)
    return library
