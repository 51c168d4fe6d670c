"""What the attacks are made with: tiny models, good inputs and what is right for them."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, T5Config

from gradellm_hf import ExplainGenerateOutput, Explanation, GradELLM, GradELLMConfig, explain_generate, explain_sequences
from tests.support.evaluated import PROMPTS, model_and_tokenizer
from tests.support.explained import explanation_of
from tests.support.small_llama import PAD, random_ids
from tests.support.tiny_models import tiny_model

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class World:
    """`P = 5`, `N = 3`.

    Attributes:
        folder: An empty folder.
        model, tokenizer, wrapped: A small Llama that is sure of nothing.
        prompt, text: Token ids `[1, P]` and `[1, P + N]`; the text is what the model writes after the prompt.
        out: The prompt, explained.
        explanation: Of random scores, with layers and special tokens.
    """

    folder: Path
    model: Any
    tokenizer: Any
    wrapped: GradELLM
    prompt: Tensor
    text: Tensor
    out: ExplainGenerateOutput
    explanation: Explanation
    gpt2: Any
    t5: Any
    with_nan: Any
    training: Any

    def generate(self, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        """`model.generate`, to compare with."""
        return lambda: self.model.generate(*args, **{"max_new_tokens": 3, **kwargs})

    def same_heatmaps(self, result: Any) -> bool:
        """Whether a result explains the text as `out` does."""
        return close(result.attributions, self.out.attributions)


def close(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and a.shape == b.shape and torch.allclose(a.cpu(), b.cpu(), rtol=1e-3, atol=1e-4)


def make_world(folder: Path) -> World:
    model, tokenizer = model_and_tokenizer()
    with_nan = copy.deepcopy(model)
    with_nan.model.layers[2].mlp.down_proj.weight.data[0, 0] = NAN
    t5 = T5Config(vocab_size=97, d_model=24, d_kv=6, d_ff=30, num_layers=2, num_heads=4, decoder_start_token_id=0)
    prompt = random_ids(1, 5)
    out = explain_generate(model, prompt, max_new_tokens=3, do_sample=False)
    special = [True, *[False] * 6, True]
    world = World(
        folder=folder,
        model=model,
        tokenizer=tokenizer,
        wrapped=GradELLM(model, tokenizer),
        prompt=prompt,
        text=out.sequences,
        out=out,
        explanation=explanation_of(
            ["<s>", "The", " capital", " is", " Rome", ",", " Rome", "</s>"], 5, special=special, num_layers=2
        ),
        gpt2=tiny_model("gpt2", dtype=torch.float32),
        t5=AutoModelForSeq2SeqLM.from_config(t5).eval(),
        with_nan=with_nan,
        training=copy.deepcopy(model).train(),
    )
    (folder / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in PROMPTS))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return world


def padded(world: World) -> dict[str, Tensor]:
    """Two prompts, the second with two positions of padding."""
    ids = world.prompt.repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, :2], ids[1, :2] = 0, PAD
    return {"input_ids": ids, "attention_mask": mask}


def explained(world: World, mask: Tensor | None = None, **config: Any) -> Tensor:
    """Heatmaps of the text, by the stepwise engine."""
    config = {"engine": "stepwise", **config}
    out = explain_sequences(world.model, world.text, 5, mask, explain_config=GradELLMConfig(**config))
    return out.attributions
