"""The functions of `torch.cuda` that libraries call, over the simulated devices."""

from types import SimpleNamespace
from typing import Any

import torch

_MEMORY = 10**10  # bytes that a device says it has, unless its capacity is set


def replace_functions(library: Any) -> None:
    """Replaces the functions of `torch.cuda`, and `torch.UntypedStorage.clone`, which `copy.deepcopy` uses."""

    def index_of(device: Any = None) -> int:
        index = device if isinstance(device, int) else None if device is None else torch.device(device).index
        return library.current_device() if index is None or index < 0 else index

    class Device:
        """`with torch.cuda.device(1):`"""

        def __init__(self, device: Any):
            self.index = index_of(device)

        def __enter__(self) -> None:
            self.before = library.current_device()
            library.set_device(self.index)

        def __exit__(self, *_: Any) -> None:
            library.set_device(self.before)

    def capacity(device: Any = None) -> int:
        return library.capacity(index_of(device)) or _MEMORY

    def properties(device: Any = None) -> Any:
        return SimpleNamespace(
            total_memory=capacity(device), major=8, minor=0, name="simulated", multi_processor_count=1, gcnArchName=""
        )

    def memory_allocated(device: Any = None) -> int:
        return library.bytes(index_of(device))

    def nothing(*args: Any, **kwargs: Any) -> None:
        pass

    functions: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *args, **kwargs: True,
        "is_current_stream_capturing": lambda: False,
        "device": Device,
        "device_count": lambda: library.device_count,
        "_device_count_nvml": lambda: library.device_count,
        "current_device": library.current_device,
        "set_device": lambda device: library.set_device(index_of(device)),
        "get_device_name": lambda device=None: "simulated",
        "get_device_capability": lambda device=None: (8, 0),
        "get_device_properties": properties,
        "mem_get_info": lambda device=None: (capacity(device) - memory_allocated(device), capacity(device)),
        "memory_allocated": memory_allocated,
        "memory_reserved": memory_allocated,
        "max_memory_allocated": lambda device=None: library.peak(index_of(device)),
        "reset_peak_memory_stats": lambda device=None: library.reset_peak(index_of(device)),
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        **dict.fromkeys(("_lazy_init", "empty_cache", "synchronize", "ipc_collect"), nothing),
        **dict.fromkeys(("manual_seed", "manual_seed_all", "set_rng_state"), nothing),
    }
    for name, function in functions.items():
        setattr(torch.cuda, name, function)

    clone = torch.UntypedStorage.clone

    def clone_storage(self: torch.UntypedStorage) -> torch.UntypedStorage:
        if self.device.type != "cuda":
            return clone(self)
        return torch.empty(0, dtype=torch.uint8, device=self.device).set_(self).clone().untyped_storage()  # type: ignore[call-overload]

    torch.UntypedStorage.clone = clone_storage  # type: ignore[method-assign]
