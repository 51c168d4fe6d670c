"""The weights that were learned once a model: head weights, which the package ships, and AT2's weights as their rival.

Both were learned from the same texts and as many forward passes, for one family after the other:

    gradellm calibrate MODEL --num-prompts 128 --output head_weights.safetensors
    python -m benchmarks.head_weights.measure FAMILY FOLDER --num-prompts 128
    python -m benchmarks.head_weights.study FOLDER --at2 FILE
"""

from importlib.resources import files
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from gradellm_hf import HeadWeights

_SHIPPED = {"smollm2": "smollm2-135m-instruct", "gemma3": "gemma-3-270m"}
_AT2 = Path(__file__).with_name("at2")


def head_weights(family: str) -> HeadWeights:
    """Head weights of a family of the evidence."""
    return HeadWeights.load(str(files("gradellm_hf.calibration") / f"{_SHIPPED[family]}.safetensors"))


def at2_weights(family: str) -> Tensor:
    """AT2's weights of a family, `[L, H]`."""
    return load_file(_AT2 / f"{family}.safetensors")["weights"]
