"""Tiny models of each family that have learned one thing: to name the colour of the only coloured square of a grey picture.

Their vision layers do not mix patches, and the answer's attention is trained onto the tokens that the square changes: so these
decide. Nothing here knows where on a picture a token lies.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradellm_hf.results.chats import encoded_prompts
from tests.support.pictures import COLOURS, square_on_grey
from tests.support.tiny_processors import decoder_inputs, fresh_model, image_token_id, processor_of, without_mixing

SIZE, SIDE = (64, 64), 16
_EXAMPLES, _STEPS, _BATCH, _RATE, _LEARNED = 48, 120, 16, 5e-3, 0.1


def planted_chat(picture: Any) -> list[dict[str, Any]]:
    """A question about a picture."""
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Colour?"}]}]


def square(number: int) -> tuple[int, int, int, int]:
    """One of sixteen places: left, top, right, bottom."""
    left, top = SIDE * (number % 4), SIDE * (number // 4 % 4)
    return left, top, left + SIDE, top + SIDE


@cache
def taught(family: str) -> tuple[Any, Any]:
    """The model, which is to be run without mixing, and its processor."""
    model, processor = fresh_model(family, layers=1, strong=True), processor_of(family)
    model.set_attn_implementation("eager")  # which returns its weights
    decoder = [*model.get_decoder().parameters(), *model.lm_head.parameters()]
    model.requires_grad_(False)
    for parameter in decoder:
        parameter.requires_grad_(True)
    first_of = [processor.tokenizer(f" {name}", add_special_tokens=False)["input_ids"][0] for name in COLOURS]
    inputs, planted, answers = _examples(family, model, processor)
    optimiser = torch.optim.Adam(decoder, lr=_RATE)
    generator = torch.Generator().manual_seed(0)
    with without_mixing(model):
        for _ in range(_STEPS):
            rows = torch.randperm(_EXAMPLES, generator=generator)[:_BATCH].tolist()
            batch = {name: torch.cat([inputs[row][name] for row in rows]) for name in inputs[0]}
            out = model(**batch, use_cache=False, output_attentions=True)
            looked = (out.attentions[-1][:, :, -1] * planted[rows][:, None]).sum(-1)  # [batch, heads]
            # Each logit for itself: a colour's is high because of its square, not because the others are low.
            named = F.binary_cross_entropy_with_logits(out.logits[:, -1, first_of], answers[rows])
            loss = named - looked.clamp_min(1e-6).log().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if loss < _LEARNED:
                break
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    return model.requires_grad_(True), processor


def _examples(family: str, model: Any, processor: Any) -> tuple[list[dict[str, Tensor]], Tensor, Tensor]:
    """What the processor returns for each picture, which tokens its square changes `[E, P]`, and its colour `[E, 3]`."""
    names = list(COLOURS)
    inputs, planted = [], []
    for number in range(_EXAMPLES):
        pictures = [square_on_grey(SIZE, place, names[number % 3], seed=number) for place in (square(number), (0, 0, 0, 0))]
        prompts = [encoded_prompts(processor, [planted_chat(picture)], {})[0] for picture in pictures]
        with without_mixing(model):
            with_square, without = (decoder_inputs(model, prompt.images.inputs)[0] for prompt in prompts)
        change = (with_square - without).norm(dim=-1)
        is_image = torch.tensor(prompts[0].ids) == image_token_id(family)
        planted.append((change > 0.8 * change.max()) & is_image)
        inputs.append(dict(prompts[0].images.inputs))
    return inputs, torch.stack(planted).float(), torch.eye(3)[torch.arange(_EXAMPLES) % 3]
