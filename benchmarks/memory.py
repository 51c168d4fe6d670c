"""`python -m benchmarks.memory generate|explain P N`: prints the peak resident memory of one generation, in bytes.

A process of its own for each figure: the peak of a process cannot be reset.
"""

import resource
import sys

import torch

from gradellm_hf import explain_generate
from gradellm_hf.demo_model import load_smollm2


def main(what: str, prompt_length: int, num_steps: int) -> None:
    model, _ = load_smollm2()
    prompt = torch.randint(100, 40000, (1, prompt_length), generator=torch.Generator().manual_seed(0))
    kwargs = {"max_new_tokens": num_steps, "min_new_tokens": num_steps, "do_sample": False}
    if what == "explain":
        explain_generate(model, prompt, **kwargs)
    else:
        model.generate(prompt, **kwargs)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
