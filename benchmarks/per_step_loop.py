"""The obvious way to explain a generation, for contrast: one forward and one backward pass over the whole prefix per token."""

from typing import Any

import torch
from torch import Tensor


def explain_step(model: Any, token_ids: Tensor, position: int) -> Tensor:
    """Heatmap `[position + 1]` of the token after `position`, all layers, by ordinary autograd.

    Args:
        model: A Llama-like model with `attn_implementation="eager"`.
        token_ids: `[1, S]`.
        position: The position that predicts the explained token.
    """
    head_outputs: list[Tensor] = []
    values: list[Tensor] = []
    handles = []
    for layer in model.model.layers:
        attention = layer.self_attn
        handles.append(attention.v_proj.register_forward_hook(lambda m, a, output: values.append(output.detach())))
        handles.append(attention.o_proj.register_forward_pre_hook(lambda m, a: head_outputs.append(a[0])))
    try:
        outputs = model(token_ids[:, : position + 1], output_attentions=True, use_cache=False, logits_to_keep=1)
        target = outputs.logits[0, -1, token_ids[0, position + 1]]
        gradients = torch.autograd.grad(target, head_outputs)
    finally:
        for handle in handles:
            handle.remove()
    config = model.config
    heatmap = torch.zeros(position + 1)
    for weights, value, gradient in zip(outputs.attentions, values, gradients, strict=True):
        by_head = value[0].unflatten(-1, (config.num_key_value_heads, -1)).transpose(0, 1)
        by_head = by_head.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, dim=0)
        g = gradient[0, -1].unflatten(-1, (config.num_attention_heads, -1))
        heatmap += (weights[0, :, -1].detach() * torch.einsum("hd,htd->ht", g, by_head)).sum(0).relu()
    return heatmap
