"""Explanations with random scores, and texts that try to break out of what shows them."""

import torch

from gradellm_hf.results.explanation import Explanation

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--",
    "\"'>",
    "\u2028",
    "\x1b[2J",
    "\u202eabc",
    "&amp;",
    "</style>",
    "\ud800",
]


def explanation_of(tokens, prompt_length, *, special=None, num_layers=0, signed=False, seed=0):
    """Random scores for a text; special tokens hold most."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(tokens) - prompt_length, len(tokens))
    special = special or [False] * len(tokens)
    scores = (torch.rand(num_layers + 1, *shape, generator=generator) - (0.5 if signed else 0)) ** 3
    scores = scores.tril(prompt_length - 1) * torch.where(torch.tensor(special), 50.0, 1.0)
    return Explanation(
        tokens=list(tokens),
        token_ids=list(range(len(tokens))),
        prompt_length=prompt_length,
        attributions=scores[0],
        token_probabilities=torch.linspace(0.2, 0.9, shape[0]),
        text="".join(tokens),
        special=special,
        layer_attributions=scores[1:] if num_layers else None,
        layers=list(range(num_layers)) if num_layers else None,
        model_name="a model",
    )
