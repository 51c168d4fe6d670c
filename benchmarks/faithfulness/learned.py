"""What is learned once a model, from the prompts that the package ships: head weights, and AT2's weights as their rival."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import gradellm_hf
from gradellm_hf import GradELLM, HeadWeights
from gradellm_hf.calibration.texts import shipped_prompts
from gradellm_hf.evaluation.texts import read_text
from gradellm_hf.methods import learn_at2

_TOKENS = _ABLATIONS = 12  # a prompt, for both: the tokens written, and the forward passes with something left out


def head_weights(model: Any, tokenizer: Any, folder: Path) -> HeadWeights:
    """Head weights as `gradellm calibrate` learns them. They are learned once, and that goes on where it was stopped."""
    path = folder / "head_weights.safetensors"
    if path.exists():
        return HeadWeights.load(path)
    options = {"num_tokens": _TOKENS, "num_sources": _ABLATIONS, "output_dir": folder / "calibration"}
    weights = gradellm_hf.calibrate(model, tokenizer, **options)
    weights.save(path)
    return weights


def at2_weights(model: Any, tokenizer: Any, folder: Path) -> Tensor:
    """AT2's weights `[L, H]`, by its recipe, from the same prompts and as many forward passes."""
    path = folder / "at2.safetensors"
    if not path.exists():
        explainer, reader = GradELLM(model, tokenizer), shipped_prompts(tokenizer)
        texts = []
        for index in range(len(reader)):
            text = read_text(explainer, reader[index], False, {"max_new_tokens": _TOKENS, "do_sample": False})
            tokens = torch.arange(text.prompt_length).masked_fill(text.fixed, -1)
            texts.append((text.sequences, text.prompt_length, tokens))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"weights": learn_at2(model, texts, num_masks=_ABLATIONS)}, path)
    return load_file(path)["weights"]
