"""Blocks cover every score of a layer that a query may see, once, and are never large."""

import pytest
import torch

from gradellm_hf.engines.blocks import blocks, query_blocks, span

ROWS, GROUPS, SHARED, QUERIES, KEYS = 3, 5, 2, 11, 17


@pytest.mark.parametrize("scores", [1, 100, 400, 1000, 10**5])
def test_every_query_meets_each_key_up_to_its_own_once(scores, monkeypatch):
    monkeypatch.setattr("gradellm_hf.engines.blocks._CACHED_SCORES", scores)
    monkeypatch.setattr("gradellm_hf.engines.blocks._FEWEST_QUERIES", 2)
    monkeypatch.setattr("gradellm_hf.engines.blocks._QUERIES", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    met = torch.zeros(ROWS, GROUPS, QUERIES, KEYS)
    for block in blocks(ROWS, GROUPS, SHARED, QUERIES, KEYS, torch.device("cpu")):
        assert block.queries.stop - block.queries.start <= 4
        assert block.keys.stop == KEYS - QUERIES + block.queries.stop
        met[block.rows, block.groups, block.queries, block.keys] += 1
    seen = torch.ones(QUERIES, KEYS, dtype=torch.bool).tril(KEYS - QUERIES).expand_as(met)
    assert (met[seen] == 1).all()
    assert met.max() == 1


@pytest.mark.parametrize(("device", "keys"), [("cpu", 100), ("cpu", 10**5), ("cuda", 1000), ("cuda", 10**6)])
def test_a_block_has_at_most_eight_million_scores_however_long_the_text(device, keys):
    for block in blocks(4, 8, 6, 300, keys, torch.device(device)):
        rows, groups, queries, seen = (x.stop - x.start for x in (block.rows, block.groups, block.queries, block.keys))
        assert rows * groups * 6 * queries * seen <= 2**23


def test_the_heads_of_a_block_are_those_of_its_groups():
    (block,) = blocks(1, 2, 3, 4, 5, torch.device("cpu"))
    assert block.heads(3) == slice(0, 6)


def test_blocks_of_queries_end_at_the_own_key_of_their_last_query():
    assert list(query_blocks(5, 9, 2)) == [(slice(0, 2), slice(0, 6)), (slice(2, 4), slice(0, 8)), (slice(4, 5), slice(0, 9))]


def test_the_span_of_flags_has_every_true():
    assert span(torch.tensor([False, True, False, True, False])) == slice(1, 4)
    assert span(torch.tensor([False, False])) == slice(0, 0)
