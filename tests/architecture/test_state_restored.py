"""Whatever happens, the model, Transformers and torch are left as they were."""

import copy
import random
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LogitsProcessor
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from gradellm_hf import GradELLMConfig, InvalidInputError, explain_generate, explain_sequences, verify
from tests.support.small_llama import assert_same_heatmaps, padded_prompts, random_ids, small_llama

CONFIGS = {
    "replay": GradELLMConfig(),
    "replay of some layers": GradELLMConfig(layers=[1, 3], spatial="loosened"),
    "stepwise": GradELLMConfig(engine="stepwise", layers=2),
    "paper": GradELLMConfig.paper(),
    "paper, stepwise": GradELLMConfig.paper(engine="stepwise"),
}
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks", "_forward_hooks_always_called")


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that an explanation could leave changed."""
    return {
        "attention implementation": model.config._attn_implementation,
        "attention functions": {name: ALL_ATTENTION_FUNCTIONS[name] for name in ALL_ATTENTION_FUNCTIONS.valid_keys()},
        "attention interface": dict(vars(AttentionInterface)),
        "configs": copy.deepcopy((model.config.to_dict(), model.generation_config.to_dict())),
        "hooks": {
            (name, kind): list(getattr(module, kind))
            for name, module in model.named_modules()
            for kind in HOOKS + BACKWARD_HOOKS
        },
        "attributes": {name: set(vars(module)) for name, module in model.named_modules()},
        "training": {name: module.training for name, module in model.named_modules()},
        "parameters": {
            name: (id(parameter), parameter._version, parameter.requires_grad, parameter.grad)
            for name, parameter in model.named_parameters()
        },
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "random": random.getstate(),
        "compiler stance": torch._dynamo.eval_frame._stance,
    }


class BoomError(Exception):
    pass


class Bomb(nn.Module):
    """A module inside the model that fails if gradients are on: in the explanation, not in the generation."""

    def __init__(self, inner: nn.Module, error: type[BaseException], in_backward: bool):
        super().__init__()
        self.inner, self.error, self.in_backward, self.armed = inner, error, in_backward, False

    def explode(self, *_: Any) -> None:
        raise self.error("boom")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        output = self.inner(hidden_states)
        if self.armed and torch.is_grad_enabled():
            output.register_hook(self.explode) if self.in_backward else self.explode()
        return output


class FailingStreamer(BaseStreamer):
    def __init__(self, error: type[BaseException]):
        self.error, self.left = error, 3

    def put(self, value: torch.Tensor) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error("boom")

    def end(self) -> None:
        pass


class FailingProcessor(LogitsProcessor):
    def __init__(self, error: type[BaseException]):
        self.error = error

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise self.error("boom")


@pytest.fixture(scope="module")
def llama():
    """`H * D == E`, so that the paper preset works; some parameters trainable, some not."""
    model = small_llama(head_dim=8)
    model.model.layers[2].requires_grad_(False)
    return model


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request):
    return request.param


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=str)
def test_after_success(llama, config, options):
    llama.generate(**padded_prompts(), max_new_tokens=4, **options)  # which leaves an attribute of its own
    before = state(llama)
    explain_generate(llama, **padded_prompts(), max_new_tokens=4, explain_config=config, **options)
    assert state(llama) == before
    explain_sequences(llama, random_ids(2, 9), 6, explain_config=config)
    assert state(llama) == before


def test_after_verify(llama):
    before, random_state = state(llama), torch.get_rng_state()
    verify(llama)
    assert state(llama) == before
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    "options", [{"do_sample": True}, {"num_beams": 3, "do_sample": True}], ids=["sampling", "sampled beams"]
)
def test_the_random_state_is_that_after_generate(llama, config, options):
    torch.manual_seed(3)
    llama.generate(**padded_prompts(), max_new_tokens=4, **options)
    expected = torch.get_rng_state()
    torch.manual_seed(3)
    explain_generate(llama, **padded_prompts(), max_new_tokens=4, explain_config=config, **options)
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("error", [BoomError, KeyboardInterrupt])
def test_after_a_target_that_raises(llama, config, error):
    def target(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        raise error("boom")

    failing = GradELLMConfig(layers=config.layers, channel=config.channel, engine=config.engine, target=target)
    before, expected = state(llama), llama.generate(random_ids(2, 7), max_new_tokens=4)
    with pytest.raises(error, match=r"boom") as raised:
        explain_generate(llama, random_ids(2, 7), max_new_tokens=4, explain_config=failing)
    assert state(llama) == before
    assert torch.equal(raised.value.generated.sequences, expected)


@pytest.mark.parametrize("error", [BoomError, KeyboardInterrupt])
@pytest.mark.parametrize("in_backward", [False, True], ids=["forward", "backward"])
def test_after_a_module_that_raises_in_the_explanation(config, error, in_backward):
    model, ids = small_llama(head_dim=8), random_ids(2, 7)
    model.model.layers[4].mlp = bomb = Bomb(model.model.layers[4].mlp, error, in_backward)
    expected = explain_generate(model, ids, max_new_tokens=4, explain_config=config)
    before, bomb.armed = state(model), True
    with pytest.raises(error, match=r"boom") as raised:
        explain_generate(model, ids, max_new_tokens=4, explain_config=config)
    assert state(model) == before
    assert torch.equal(raised.value.generated.sequences, expected.sequences)
    bomb.armed = False
    again = explain_generate(model, ids, max_new_tokens=4, explain_config=config)
    assert_same_heatmaps(again.attributions, expected.attributions, 1e-6)


@pytest.mark.parametrize("error", [BoomError, KeyboardInterrupt])
@pytest.mark.parametrize("part", ["streamer", "logits processor"])
def test_after_a_generation_that_raises(llama, error, part):
    options = {"streamer": FailingStreamer(error)} if part == "streamer" else {"logits_processor": [FailingProcessor(error)]}
    before = state(llama)
    with pytest.raises(error, match=r"boom") as raised:
        explain_generate(llama, random_ids(1, 7), max_new_tokens=4, **options)
    assert state(llama) == before
    assert not hasattr(raised.value, "generated")


def test_after_a_first_look_that_raises():
    model = small_llama()
    model.model.layers[2].mlp = Bomb(model.model.layers[2].mlp, BoomError, False)
    failing = model.model.layers[2].mlp.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(BoomError("boom")))
    before = state(model)
    with pytest.raises(BoomError):
        explain_generate(model, random_ids(1, 7), max_new_tokens=4)
    assert state(model) == before
    failing.remove()
    assert explain_generate(model, random_ids(1, 7), max_new_tokens=4).attributions.sum() > 0


def test_after_bad_input(llama):
    before = state(llama)
    with pytest.raises(InvalidInputError, match=r"layers"):
        explain_generate(llama, random_ids(1, 7), max_new_tokens=4, explain_config=GradELLMConfig(layers=[77]))
    foils = GradELLMConfig(target="contrast", contrast_token_ids=[1, 2, 3])
    with pytest.raises(InvalidInputError, match=r"contrast_token_ids"):
        explain_generate(llama, random_ids(1, 7), max_new_tokens=4, explain_config=foils)
    with pytest.raises(InvalidInputError, match=r"padding"):
        explain_generate(llama, random_ids(1, 7), attention_mask=torch.tensor([[1, 1, 1, 1, 1, 1, 0]]), max_new_tokens=4)
    assert state(llama) == before
