"""Explanations with random scores, and texts that try to break out of what shows them."""

import torch

from gradellm_hf.results.explanation import Explanation
from gradellm_hf.results.removals import Removal, Removals

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


#: Fruit: nine tokens of a prompt, five of an answer.
FRUIT = ["<s>", "One", " apple", ".", " Two", " pea", "rs", ".", "\n", " Three", " fi", "gs", ".", "</s>"]
SPREAD = 1.4  # of the logarithms of scores


def explanation_of(tokens, prompt_length, *, special=None, num_layers=0, signed=False, seed=0, **more):
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
        **more,
    )


def long_explanation(prompt_length, num_steps, num_layers=0):
    """Words with scores as real heatmaps have them: heavy tails, so that most are small beside their row's largest."""
    generator = torch.Generator().manual_seed(0)
    words = [f" Word{i % 97}" if i % 20 else " end." for i in range(prompt_length + num_steps)]
    shape = (num_steps, len(words))
    layers = [
        torch.randn(shape, generator=generator).mul_(SPREAD).exp_().tril_(prompt_length - 1) for _ in range(num_layers or 1)
    ]
    return Explanation(
        tokens=words,
        token_ids=list(range(len(words))),
        prompt_length=prompt_length,
        attributions=sum(layers),
        token_probabilities=torch.full((num_steps,), 0.5),
        text="".join(words),
        special=[False] * len(words),
        layer_attributions=torch.stack(layers) if num_layers else None,
    )


def fruit(**more):
    """The explanation of `FRUIT`."""
    return explanation_of(FRUIT, 9, special=[token.startswith("<") for token in FRUIT], **more)


def fruit_without(name, loss, other_losses):
    """What the answer of `fruit` lost without a word."""
    (part,) = fruit().sources("word", of="answer")
    removed = [source for source in part.sources if source.text == name]
    return Removals([Removal(part, removed, loss, other_losses)])
