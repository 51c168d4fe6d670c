"""`python -m benchmarks.first_call`: how long the first explanation of a process takes, and later ones, in seconds, as JSON.

At the first call modules are imported, the model is looked at, and the replay engine is checked against the model.
"""

import json

import torch
import transformers

from gradellm_hf import explain_generate
from gradellm_hf.demo_model import load_smollm2

from .measuring import timed


def main(prompt_length: int = 128, num_steps: int = 64, later: int = 3) -> None:
    transformers.utils.logging.disable_progress_bar()
    model, _ = load_smollm2()
    prompt = torch.randint(100, 40000, (1, prompt_length), generator=torch.Generator().manual_seed(0))
    length = {"max_new_tokens": num_steps, "min_new_tokens": num_steps, "do_sample": False}
    model.generate(prompt, **length)  # PyTorch's own first call is not ours
    print(json.dumps([timed(lambda: explain_generate(model, prompt, **length)) for _ in range(1 + later)]))


if __name__ == "__main__":
    main()
