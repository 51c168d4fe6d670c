"""A Llama small enough to run in milliseconds, prompts for it, and what "the same explanation" means in float32."""

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from gradellm_hf import ExplainGenerateOutput, GradELLMConfig, explain_generate, explain_sequences

VOCABULARY = 97
PAD = 0


_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 44,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def small_llama(seed: int = 0, attention: str = "sdpa", dtype: torch.dtype = torch.float32, **options: Any) -> LlamaForCausalLM:
    """No two dimensions are equal, and `H * D != E`, unless the options say so."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**_SIZES, **options, "attn_implementation": attention})).to(dtype).eval()


def random_ids(rows: int, length: int, seed: int = 0) -> Tensor:
    """Token ids without special ones, `[rows, length]`."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded_prompts(lengths: tuple[int, ...] = (9, 5, 7), seed: int = 0) -> dict[str, Tensor]:
    """Prompts of these lengths, padded on the left, as a tokenizer encodes them."""
    width = max(lengths)
    mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()
    return {"input_ids": random_ids(len(lengths), width, seed).masked_fill(mask == 0, PAD), "attention_mask": mask}


def assert_same_heatmaps(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Equal up to `tolerance` of the largest score: what rounding in float32 leaves open."""
    assert actual.shape == expected.shape
    assert expected.abs().max() > 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def assert_explained_as_existing_text(
    model: Any, out: ExplainGenerateOutput, prompt_mask: Tensor | None = None, config: GradELLMConfig | None = None
) -> None:
    """Whatever `generate` did on the way, its text is explained as if it had been given."""
    if prompt_mask is None:
        prompt_mask = torch.ones(out.sequences.shape[0], out.prompt_length, dtype=torch.long)
    assert torch.equal(out.prompt_mask, prompt_mask.bool())
    mask = torch.cat([prompt_mask, out.step_mask.long()], dim=1)
    given = explain_sequences(model, out.sequences, out.prompt_length, mask, explain_config=config)
    assert torch.equal(given.step_mask, out.step_mask)
    assert_same_heatmaps(out.attributions, given.attributions)
    assert_same_heatmaps(out.target_scores, given.target_scores)
    assert_same_heatmaps(out.token_probabilities, given.token_probabilities)


def generate_both(model: PreTrainedModel, **kwargs: Any) -> tuple[Any, ExplainGenerateOutput]:
    """What `generate` and `explain_generate` return from the same seed; both leave the random state the same."""
    torch.manual_seed(5)
    expected = model.generate(**kwargs)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    out = explain_generate(model, **kwargs)
    assert torch.equal(torch.get_rng_state(), state)
    return expected, out
