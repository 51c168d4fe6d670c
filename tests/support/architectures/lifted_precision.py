"""Everything that a model computes in float32 whatever its dtype, in float64."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tests.support.tiny_models import float64_islands


@contextmanager
def lifted_precision() -> Iterator[None]:
    """`float64_islands`, and float64 for tensors that are made without a dtype from Python numbers."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with float64_islands():
            yield
    finally:
        torch.set_default_dtype(default)
