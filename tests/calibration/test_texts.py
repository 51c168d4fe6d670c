"""What is left out of a text that is calibrated on."""

import torch

from gradellm_hf.calibration.texts import draw_sources
from tests.support.tiny_tokenizers import byte_level_bpe


def test_the_first_token_is_left_out_in_addition_and_marked_unless_it_is_special():
    tokenizer = byte_level_bpe()
    words = torch.tensor(tokenizer("the old king of a small land had lost his people in winter")["input_ids"])
    special = torch.cat([torch.tensor([tokenizer.eos_token_id]), words])
    had_it = []
    for seed in range(12):
        torch.manual_seed(seed)
        drawn = set(torch.randperm(len(words) - 1)[:6].tolist())
        torch.manual_seed(seed)
        sources, is_sink = draw_sources(words, tokenizer, 6)
        assert sources.tolist() == sorted(drawn | {0})
        assert is_sink.tolist() == [True] + [False] * (len(sources) - 1)
        had_it.append(0 in drawn)
        sources, is_sink = draw_sources(special, tokenizer, 6)
        assert len(sources) == 6
        assert not is_sink.any()
    assert set(had_it) == {True, False}
