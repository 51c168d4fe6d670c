"""Grad-ELLM in one file: what each token that a Llama-like model writes rests on. Nothing but PyTorch and Transformers.

    python examples/minimal.py HuggingFaceTB/SmolLM2-135M-Instruct "The capital of France is Paris. The capital of Italy is"

The method is that of Huang & Chan, arXiv 2601.03089, its equations read head by head. In each layer, a head of position `p`
puts out `z[p, h] = sum_i A[p, h, i] v[i, h]`: attention weights times values. To first order, the logit of the token that
`p` predicts gets `A[p, h, i] <g[p, h], v[i, h]>` of it from position `i`, with `g` the gradient of that logit at `z[p, h]`.
The positive parts of these, of all heads and layers, add up to the heatmap.

This costs a forward and a backward pass over the whole text for every token. `gradellm_hf` gets the same numbers for all
tokens from one of each, and for many more architectures.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

# Shape letters: L layers, H query heads, G key/value heads (several query heads share one), T tokens so far, D head dim.


@contextmanager
def recorded(model: Any) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """While the model runs: the head outputs and the values of each layer, `[1, T, H * D]` and `[1, T, G * D]`."""
    head_outputs: list[Tensor] = []
    values: list[Tensor] = []

    def keep_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        head_outputs.append(args[0])  # what the output projection gets: the outputs of all heads, side by side

    def keep_output(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        values.append(output)

    handles = []
    try:
        for layer in model.model.layers:
            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(keep_input))
            handles.append(layer.self_attn.v_proj.register_forward_hook(keep_output))
        yield head_outputs, values
    finally:
        for handle in handles:
            handle.remove()


def layer_heatmap(attention_HT: Tensor, gradient_HD: Tensor, values_GTD: Tensor) -> Tensor:
    """`sum_h relu(A[h, i] <g[h], v[i, h]>)`, `[T]`: what one layer read from each position, for the token."""
    values_HTD = values_GTD.repeat_interleave(len(gradient_HD) // len(values_GTD), dim=0)
    contributions_HT = torch.einsum("ht,hd,htd->ht", attention_HT, gradient_HD, values_HTD)
    return contributions_HT.relu().sum(0)


def explain_next_token(model: Any, token_ids: Tensor, chosen: Tensor | int) -> Tensor:
    """The heatmap of one token: how much each position of `token_ids` `[T]` speaks for `chosen` as the next, `[T]`.

    The model must return its attention weights, so it must have been loaded with `attn_implementation="eager"`.
    """
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    with torch.enable_grad(), recorded(model) as (head_outputs, values):
        out = model(token_ids[None], output_attentions=True, use_cache=False)
        gradients = torch.autograd.grad(out.logits[0, -1, chosen], head_outputs)
    heatmap = torch.zeros(len(token_ids), dtype=out.logits.dtype)
    for attention, gradient, value in zip(out.attentions, gradients, values, strict=True):
        heatmap += layer_heatmap(
            attention[0, :, -1],  # the last position predicts the next token: its row of the attention matrix,
            gradient[0, -1].view(-1, head_dim),  # and the gradient at its head outputs
            value[0].unflatten(-1, (-1, head_dim)).transpose(0, 1),
        )
    return heatmap.detach()


def explain_text(model: Any, token_ids: Tensor, prompt_length: int) -> Tensor:
    """The heatmaps of all tokens from `prompt_length` on, `[N, S]`; 0 for positions that a token had not seen."""
    heatmaps = torch.zeros(len(token_ids) - prompt_length, len(token_ids), dtype=model.dtype)
    for step, position in enumerate(range(prompt_length, len(token_ids))):
        heatmaps[step, :position] = explain_next_token(model, token_ids[:position], token_ids[position])
    return heatmaps


def main() -> None:
    parser = argparse.ArgumentParser(description="Shows what each token that a Llama-like model writes rests on.")
    parser.add_argument("model", help="a name on the Hub, or a folder")
    parser.add_argument("prompt", nargs="?", default="The capital of France is Paris. The capital of Italy is")
    parser.add_argument("--max-new-tokens", type=int, default=8)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, attn_implementation="eager").eval()
    inputs = tokenizer(options.prompt, return_tensors="pt")
    prompt_length = inputs["input_ids"].shape[1]
    sequence = model.generate(**inputs, max_new_tokens=options.max_new_tokens, do_sample=False)[0]
    tokens = [tokenizer.decode([token_id]) for token_id in sequence.tolist()]
    for step, heatmap in enumerate(explain_text(model, sequence, prompt_length)):
        scores, positions = heatmap.topk(min(5, prompt_length))
        strongest = ", ".join(f"{tokens[i]!r} {score:.2f}" for score, i in zip(scores.tolist(), positions.tolist()))
        print(f"{tokens[prompt_length + step]!r:>12} <- {strongest}")


if __name__ == "__main__":
    main()
