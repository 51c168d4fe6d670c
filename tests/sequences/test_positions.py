"""A text that is longer than the positions a model has learned is refused by name; a model that computes them goes on."""

from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    StoppingCriteria,
    XGLMConfig,
    XGLMForCausalLM,
)

from gradellm_hf import GradELLM, InvalidInputError, explain_generate, explain_sequences, explain_stream, verify
from gradellm_hf.architecture.reading import position_limit
from tests.support.small_llama import PAD, random_ids, small_llama

LIMIT = 12
_SHARED = {"vocab_size": 97, "bos_token_id": None, "eos_token_id": None, "pad_token_id": PAD}


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(**_SHARED, n_embd=32, n_layer=2, n_head=4, n_positions=LIMIT))


def opt() -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32}
    return OPTForCausalLM(OPTConfig(**_SHARED, **sizes, max_position_embeddings=LIMIT))


def mpt() -> Any:
    return MptForCausalLM(MptConfig(vocab_size=97, d_model=32, n_layers=2, n_heads=4, max_seq_len=LIMIT))


MODELS = {"gpt2": gpt2, "opt": opt, "mpt": mpt}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request):
    torch.manual_seed(0)
    return request.param().eval()


WAYS = {
    "generate": lambda model, ids, new: explain_generate(model, ids, max_new_tokens=new, do_sample=False, pad_token_id=PAD),
    "stream": lambda model, ids, new: list(explain_stream(model, ids, max_new_tokens=new, do_sample=False, pad_token_id=PAD)),
    "sequences": lambda model, ids, new: explain_sequences(model, torch.cat([ids, random_ids(1, new, 1)], 1), ids.shape[1]),
    "verify": lambda model, ids, new: verify(model, prompt_length=ids.shape[1], num_steps=new),
}


@pytest.mark.filterwarnings("ignore:`mpt` is explained with the stepwise engine")
@pytest.mark.parametrize("way", ["generate", "stream", "sequences"])
def test_a_text_that_just_fits_is_explained_and_one_token_more_is_refused_by_its_limit(model, way):
    """The last token is not read, so a text may be one token longer than the table."""
    WAYS[way](model, random_ids(1, 9), LIMIT + 1 - 9)
    name = model.config.model_type
    with pytest.raises(InvalidInputError, match=rf"need 13 positions, but `{name}` knows only 12 .*Write at most 4 tokens"):
        WAYS[way](model, random_ids(1, 9), LIMIT + 2 - 9)
    with pytest.raises(
        InvalidInputError, match=rf"need 14 positions, but `{name}` knows only 12 positions.*Shorten the prompt"
    ):
        WAYS[way](model, random_ids(1, 14), 1)


def test_verify_names_the_limit_too():
    with pytest.raises(InvalidInputError, match="knows only 12 positions"):
        verify(gpt2().eval(), prompt_length=10, num_steps=6)


def test_nothing_is_generated_before_a_text_that_cannot_fit_is_refused():
    model = gpt2().eval()
    model.generate = lambda *args, **kwargs: pytest.fail("it was called")
    with pytest.raises(InvalidInputError, match="knows only 12 positions"):
        explain_generate(model, random_ids(1, 9), max_new_tokens=40)


def test_padding_takes_no_position():
    model = gpt2().eval()
    ids, mask = torch.cat([torch.full((1, 9), PAD), random_ids(1, 6)], dim=1), torch.tensor([[0] * 9 + [1] * 6])
    out = explain_generate(model, ids, attention_mask=mask, max_new_tokens=4, pad_token_id=PAD)
    assert out.step_mask.all()
    with pytest.raises(InvalidInputError, match="need 13 positions"):
        explain_generate(model, ids, attention_mask=mask, max_new_tokens=8, pad_token_id=PAD)


def test_a_row_that_may_end_before_the_limit_is_written_until_it_does():
    class EndAt(StoppingCriteria):
        def __init__(self, length):
            self.length = length

        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)

    model, ids = gpt2().eval(), random_ids(1, 9)
    out = explain_generate(model, ids, max_new_tokens=40, stopping_criteria=[EndAt(11)], pad_token_id=PAD)
    assert out.attributions.shape == (1, 2, 11)
    with pytest.raises(InvalidInputError, match="knows only 12 positions"):
        explain_generate(model, ids, max_new_tokens=40, stopping_criteria=[EndAt(30)], pad_token_id=PAD)


def test_positions_that_are_computed_have_no_limit():
    model = small_llama(max_position_embeddings=LIMIT)
    assert position_limit(model) is None
    assert explain_generate(model, random_ids(1, 9), max_new_tokens=8).attributions.shape == (1, 8, 17)
    torch.manual_seed(0)
    xglm = XGLMConfig(**_SHARED, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4, max_position_embeddings=LIMIT)
    assert position_limit(XGLMForCausalLM(xglm)) in (None, LIMIT)


def test_stop_strings_need_no_second_tokenizer(smollm2):
    model, tokenizer = smollm2
    explainer, options = GradELLM(model, tokenizer), {"max_new_tokens": 12, "do_sample": False, "stop_strings": [" six"]}
    assert explainer.explain("One, two, three, four,", **options).text.endswith(" six")
    inputs = tokenizer("One, two, three, four,", return_tensors="pt")
    assert tokenizer.decode(explainer.generate(**inputs, **options).sequences[0]).endswith(" six")
