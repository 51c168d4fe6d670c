"""Explanations made up for tests: pieces of text with random scores."""

from typing import Any

import torch

from gradellm_hf.results.explanation import Explanation


def made_up(tokens: list[str], prompt_length: int, *, num_layers: int = 3, seed: int = 0, **fields: Any) -> Explanation:
    """An explanation of these tokens, scores as a model gives them: positive, and 0 from each step's own position on."""
    generator = torch.Generator().manual_seed(seed)
    length, num_steps = len(tokens), len(tokens) - prompt_length
    by_layer = torch.rand(num_layers, num_steps, length, generator=generator).tril(prompt_length - 1)
    return Explanation(
        **{
            "tokens": tokens,
            "token_ids": list(range(length)),
            "prompt_length": prompt_length,
            "attributions": by_layer.sum(0),
            "token_probabilities": torch.rand(num_steps, generator=generator),
            "text": "".join(tokens),
            "special": [False] * length,
            "target_scores": torch.randn(num_steps, generator=generator),
            "layer_attributions": by_layer,
            "layers": list(range(num_layers)),
            "layer_names": [f"layers.{i}.self_attn" for i in range(num_layers)],
            "model_name": "made/up",
            **fields,
        }
    )
