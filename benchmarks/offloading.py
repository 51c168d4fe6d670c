"""`python -m benchmarks.offloading generate|explain|explain-first|explain-keeping P N`: peak memory of a disk-offloaded model.

All weights are on disk, and accelerate reads one module at a time. Prints as JSON, in MiB: the peak resident memory less what
the process held before the model ran, and the size of a decoder layer. Run it in a new process for each figure.
`explain-first` is the first explanation, in which the model is looked at and checked; it follows a call of `generate`. The
others are second calls. `explain-keeping` leaves the weights in autograd's graph, as without `architecture/offloading.py`.
"""

import contextlib
import json
import sys
import tempfile

import accelerate
import torch

from gradellm_hf import explain_generate
from gradellm_hf.demo_model import load_smollm2
from gradellm_hf.engines import loop as engine

from .measuring import PeakMemory

_MIB = 2**20


def main(what: str, prompt_length: int, num_steps: int) -> None:
    model, _ = load_smollm2()
    layer = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters())
    prompt = torch.randint(100, 40000, (1, prompt_length), generator=torch.Generator().manual_seed(0))
    length = {"max_new_tokens": num_steps, "min_new_tokens": num_steps, "do_sample": False}
    if what == "explain-keeping":
        engine.reload_offloaded_weights = lambda model: contextlib.nullcontext()
    with tempfile.TemporaryDirectory() as folder:
        model = accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"), offload_buffers=True)
        for first in (True, False):  # the first warms up
            with PeakMemory() as memory:
                if what == "generate" or (what == "explain-first" and first):
                    model.generate(prompt, **length)
                else:
                    explain_generate(model, prompt, **length)
    print(json.dumps({"peak": (memory.peak - memory.before) / _MIB, "layer": layer / _MIB}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
