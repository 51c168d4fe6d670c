"""`python -m benchmarks.memory_kept generate|explain|fail [calls]`: what stays in memory when nothing refers to it any more.

Three times it loads SmolLM2, lets it generate (or generate and explain, or fail in the target of its explanation), and drops
it. Then it does the same many times with one model. Prints as JSON: the resident memory after each model, in MB, and what a
call leaves behind, in MB of resident memory and in tensors that Python's garbage collector sees.
"""

import contextlib
import gc
import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from gradellm_hf import GradELLMConfig, explain_generate
from gradellm_hf.demo_model import load_smollm2

from .measuring import resident_memory

_MB = 10**6
_PROMPT = torch.randint(100, 40000, (1, 32), generator=torch.Generator().manual_seed(0))
_LENGTH = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


def _fail(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    raise ZeroDivisionError("a target that fails")


def _explain_and_fail(model: Any) -> None:
    with contextlib.suppress(ZeroDivisionError):
        explain_generate(model, _PROMPT, explain_config=GradELLMConfig(target=_fail), **_LENGTH)


RUNS: dict[str, Callable[[Any], Any]] = {
    "generate": lambda model: model.generate(_PROMPT, **_LENGTH),
    "explain": lambda model: explain_generate(model, _PROMPT, **_LENGTH),
    "fail": _explain_and_fail,
}


def after_each_model(run: Callable[[Any], Any], models: int = 3) -> list[float]:
    """Resident memory in MB after each model that was loaded, run and dropped."""
    sizes = []
    for _ in range(models):
        model, _ = load_smollm2()
        run(model)
        del model
        gc.collect()
        sizes.append(resident_memory() / _MB)
    return sizes


def growth(run: Callable[[Any], Any], calls: int) -> tuple[float, float]:
    """Tensors, and megabytes of resident memory, that a call leaves behind, after some calls to warm up."""
    model, _ = load_smollm2()
    for _ in range(10):
        run(model)
    tensors, memory = _tensors(), resident_memory()
    for _ in range(calls):
        run(model)
    return (_tensors() - tensors) / calls, (resident_memory() - memory) / calls / _MB


def _tensors() -> int:
    gc.collect()
    return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())


def main(what: str, calls: int) -> None:
    run = RUNS[what]
    models = after_each_model(run)
    tensors, megabytes = growth(run, calls)
    print(json.dumps({"resident_after_each_model": models, "tensors_per_call": tensors, "megabytes_per_call": megabytes}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200)
