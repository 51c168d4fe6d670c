"""The processes among which a job is shared out."""

import datetime
from typing import Any

import torch


def processes() -> Any:
    """The processes of a job that `accelerate launch` or `torchrun` started; they may come to their ends far apart."""
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available(), timeout=datetime.timedelta(days=365))
