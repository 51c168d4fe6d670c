"""What an answer loses without its sources, against the model read again by hand."""

import pytest
import torch

from gradellm_hf import GradELLM, InvalidInputError
from tests.support.small_llama import small_llama
from tests.support.tiny_tokenizers import byte_level_bpe

PROMPT = "The cat is red. The dog is blue. The cow is brown. The fox is grey. So"


@pytest.fixture(scope="module")
def explainer():
    return GradELLM(small_llama(vocab_size=len(byte_level_bpe())).double(), byte_level_bpe())


def log_probabilities(explainer, prompt_ids, answer_ids):
    """One token at a time."""
    values = []
    for n, token_id in enumerate(answer_ids):
        with torch.no_grad():
            logits = explainer.model(input_ids=torch.tensor([[*prompt_ids, *answer_ids[:n]]])).logits[0, -1]
        values.append(logits.log_softmax(-1)[token_id].item())
    return values


@pytest.mark.parametrize(("of", "k"), [("answer", 1), ("word", 2)])
def test_the_loss_is_that_of_the_prompt_without_the_tokens_of_the_strongest_sources(explainer, of, k):
    explanation = explainer.explain(PROMPT, " red blue")
    removals = explainer.removal_test(explanation, of=of, k=k, batch_size=3)
    border, ids = explanation.prompt_length, explanation.token_ids
    bounds = [len("".join(explanation.tokens[:i])) for i in range(len(ids) + 1)]
    before = log_probabilities(explainer, ids[:border], ids[border:])
    assert len(removals) == len(explanation.sources(of=of))
    for removal in removals:
        assert removal.removed == removal.part.sources[:k]
        kept = [
            i
            for i in range(border)
            if i in (0, border - 1) or not any(s.start < bounds[i + 1] and bounds[i] < s.end for s in removal.removed)
        ]
        after = log_probabilities(explainer, [ids[i] for i in kept], ids[border:])
        steps = [n for n in range(len(before)) if removal.part.start < bounds[border + n + 1] <= removal.part.end]
        assert removal.loss == pytest.approx(sum(before[n] - after[n] for n in steps), abs=1e-5)
        assert len(removal.other_losses) == 3
        assert removal.other_loss == pytest.approx(sum(removal.other_losses) / len(removal.other_losses))


def test_it_prints_as_a_list(explainer):
    lines = str(explainer.removal_test(explainer.explain(PROMPT, " red"), {"cat": "The cat is red."}, "answer")).splitlines()
    assert lines[0] == "red"
    assert lines[1].startswith("  loses ")
    assert lines[1].endswith(" without as many other tokens")


def test_larger_units_and_other_numbers_are_refused(explainer):
    explanation = explainer.explain(PROMPT, " red")
    with pytest.raises(InvalidInputError, match="The model reads tokens"):
        explainer.removal_test(explanation.aggregate("word"))
    with pytest.raises(InvalidInputError, match="`k` must be an int of at least 1"):
        explainer.removal_test(explanation, k=0)
