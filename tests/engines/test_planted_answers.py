"""Models in which one known token decides each answer: that token must rank first.

The task: among filler, a text holds one token of a first kind and one of a second kind. A question token at its end asks
for the one or the other, the model answers with it, is asked for the other, and answers again. So each answer is decided
by one known position, and the other kind's token is a decoy that decides another answer of the same text.

One model is built by hand, two are trained. Ranks are among the tokens of the context: the question takes part in every
answer too. The trained models keep large, orthogonal, frozen embeddings and strong weight decay, so that the answer does
not fill the whole residual stream: if it did, the last norm would hide what it is made of from any gradient of a logit.
"""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from gradellm_hf import GradELLMConfig, explain_generate, explain_sequences
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.slow

FILLER, KIND_SIZE, CONTEXT = 12, 9, 10
FIRST, SECOND = FILLER, FILLER + KIND_SIZE  # where the ids of each kind begin
QUESTION = SECOND + KIND_SIZE  # asks for the first kind; the id after it for the second
VOCABULARY = QUESTION + 2
PROMPT = CONTEXT + 1


def texts(num_rows: int, seed: int | torch.Generator) -> tuple[Tensor, Tensor]:
    """Token ids `[R, CONTEXT + 4]` (context, question, answer, question, answer); where the answers stand, `[R, 2]`."""
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    rows = torch.arange(num_rows)
    context = torch.randint(FILLER, (num_rows, CONTEXT), generator=generator)
    positions = torch.rand(num_rows, CONTEXT, generator=generator).argsort(-1)[:, :2]
    answers = torch.randint(KIND_SIZE, (num_rows, 2), generator=generator) + torch.tensor([FIRST, SECOND])
    context[rows[:, None], positions] = answers
    swapped = torch.rand(num_rows, generator=generator) < 0.5
    questions = torch.tensor([QUESTION, QUESTION + 1]).expand(num_rows, 2)
    answers, positions, questions = (torch.where(swapped[:, None], x.flip(1), x) for x in (answers, positions, questions))
    return torch.cat([context, torch.stack([questions, answers], dim=-1).flatten(1)], dim=1), positions


def built() -> PreTrainedModel:
    """A GPT-2 whose first head looks from a question to the kind it asks for, and copies the token to the output.

    A quarter of the width holds which token it is, a quarter the token to put out, and two quarters their negatives (so
    that the mean is 0 and the norms only scale). All else is small noise.
    """
    V = VOCABULARY
    model = tiny_model("gpt2", dtype=torch.float32, vocab_size=V, n_embd=4 * V, n_head=4, n_layer=2, tie_word_embeddings=False)
    identity, kinds, asked = torch.eye(V), torch.zeros(V, 2), torch.zeros(V, 2)
    kinds[FIRST:SECOND, 0] = kinds[SECOND:QUESTION, 1] = 1
    asked[QUESTION, 0] = asked[QUESTION + 1, 1] = 1
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" in name:
                parameter.fill_(0 if name.endswith("bias") else 1)
            else:
                parameter.mul_(0.02)
        model.transformer.wte.weight[:, : 2 * V] += torch.cat([identity, -identity], dim=1)
        attention = model.transformer.h[0].attn
        attention.c_attn.weight[:V, :2] += 1.2 * asked
        attention.c_attn.weight[:V, 4 * V : 4 * V + 2] += kinds
        attention.c_attn.weight[:V, 8 * V : 9 * V] += identity
        attention.c_proj.weight[:V, 2 * V :] += 0.1 * torch.cat([identity, -identity], dim=1)
        model.lm_head.weight[:, 2 * V : 3 * V] += identity
    return model


def trained(family: str, sizes: dict[str, int], seed: int = 0, steps: int = 200) -> PreTrainedModel:
    model = tiny_model(family, dtype=torch.float32, vocab_size=VOCABULARY, tie_word_embeddings=True, **sizes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.5)
            else:
                parameter.fill_(0 if name.endswith("bias") else 1).requires_grad_(False)
        embeddings = model.get_input_embeddings().weight.requires_grad_(False)
        torch.nn.init.orthogonal_(embeddings, gain=3, generator=generator)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=3e-3, weight_decay=3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        token_ids, _ = texts(64, generator)
        logits = model(token_ids).logits[:, [PROMPT - 1, PROMPT + 1]]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), token_ids[:, [PROMPT, PROMPT + 2]].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


@pytest.fixture(scope="module", params=["built", "trained llama", "trained gpt2"])
def model(request) -> PreTrainedModel:
    if request.param == "built":
        return built()
    if request.param == "trained gpt2":
        return trained("gpt2", {"n_layer": 2})
    return trained("llama", {"num_hidden_layers": 2})


@pytest.fixture(scope="module")
def held_out() -> tuple[Tensor, Tensor]:
    token_ids, positions = texts(40, seed=1)
    assert len(positions.unique()) == CONTEXT  # every place in the context is tried
    return token_ids, positions


def rank_in_context(attributions: Tensor, positions: Tensor, padding: int = 0) -> Tensor:
    """How many context tokens score at least as high as the planted one, itself included, `[R]`; 1 is first."""
    scores = attributions[:, padding : padding + CONTEXT]
    return (scores >= scores.gather(-1, positions[:, None])).sum(-1)


def test_the_models_know_the_answers(model, held_out):
    token_ids, _ = held_out
    for answer in (PROMPT, PROMPT + 2):
        assert torch.equal(model(token_ids).logits[:, answer - 1].argmax(-1), token_ids[:, answer])


@pytest.mark.parametrize("engine", ["replay", "stepwise"])
@pytest.mark.parametrize("spatial", ["attention", "loosened"])
def test_the_token_that_decides_the_answer_ranks_first_wherever_it_stands(model, held_out, spatial, engine):
    token_ids, positions = held_out
    out = explain_sequences(model, token_ids, PROMPT, explain_config=GradELLMConfig(spatial=spatial, engine=engine))
    for answer, step in enumerate((0, 2)):
        ranks = rank_in_context(out.attributions[:, step], positions[:, answer])
        assert (ranks == 1).all(), f"ranks {ranks.tolist()} of the planted token, answer {answer}"


def test_the_decoy_scores_less_than_half_of_the_planted_token(model, held_out):
    token_ids, positions = held_out
    attributions = explain_sequences(model, token_ids, PROMPT).attributions
    for answer, step in enumerate((0, 2)):
        planted, decoy = (attributions[:, step].gather(-1, positions[:, [i]])[:, 0] for i in (answer, 1 - answer))
        assert (planted > 2 * decoy).all()


def test_the_planted_token_ranks_first_in_a_generation_with_left_padding(model, held_out):
    token_ids, positions = held_out
    prompt = torch.nn.functional.pad(token_ids[:, :PROMPT], (3, 0))
    mask = torch.nn.functional.pad(torch.ones_like(token_ids[:, :PROMPT]), (3, 0))
    out = explain_generate(model, prompt, attention_mask=mask, max_new_tokens=1, do_sample=False)
    assert torch.equal(out.sequences[:, -1], token_ids[:, PROMPT])
    assert (rank_in_context(out.attributions[:, 0], positions[:, 0], padding=3) == 1).all()


def test_the_planted_token_speaks_for_its_own_answer_and_against_the_other(model, held_out):
    token_ids, positions = held_out
    decoys = token_ids.gather(1, positions[:, [1]])
    config = GradELLMConfig(target="contrast", contrast_token_ids=decoys, positive_only=False)
    attributions = explain_sequences(model, token_ids[:, : PROMPT + 1], PROMPT, explain_config=config).attributions[:, 0]
    assert (rank_in_context(attributions, positions[:, 0]) == 1).sum() >= 38
    against, is_for = (attributions.gather(-1, positions[:, [i]]).mean() for i in (1, 0))
    assert is_for > 0 > against
