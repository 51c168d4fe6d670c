"""`python -m benchmarks.memory P N`: what generating and explaining take, as JSON.

Run it in a new process for each size, because memory that was used once is not given back. Prints the seconds and the peak
resident memory of `generate`, and those of the `explain_generate` around it.
"""

import json
import sys
import time
from typing import Any

import torch
from transformers import LlamaForCausalLM

from gradellm_hf import explain_generate
from gradellm_hf.demo_model import load_smollm2

from .measuring import PeakMemory


def load(length: int) -> Any:
    """SmolLM2, or random weights of the same shape if the text is longer than SmolLM2 takes."""
    model, _ = load_smollm2()
    if length <= model.config.max_position_embeddings:
        return model
    config = model.config
    config.max_position_embeddings = length
    del model
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def main(prompt_length: int, num_steps: int) -> None:
    model = load(prompt_length + num_steps)
    prompt = torch.randint(100, 40000, (1, prompt_length), generator=torch.Generator().manual_seed(0))
    length = {"max_new_tokens": num_steps, "min_new_tokens": num_steps, "do_sample": False}
    explain_generate(model, prompt[:, :32], max_new_tokens=4)  # makes the checks that are made once per model
    result = {}
    generate = model.generate

    def measured(*args: Any, **kwargs: Any) -> Any:
        with PeakMemory() as memory:
            start = time.perf_counter()
            output = generate(*args, **kwargs)
            result.update(generate_seconds=time.perf_counter() - start)
        result.update(generate_memory=memory.peak)
        return output

    model.generate = measured
    with PeakMemory() as memory:
        start = time.perf_counter()
        explain_generate(model, prompt, **length)
        result.update(explain_seconds=time.perf_counter() - start)
    result.update(explain_memory=memory.peak)
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
