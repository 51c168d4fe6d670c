"""The strongest scores and the rest as sums: what is said of an answer stays the same, or it is stated what is not kept."""

import dataclasses
import json

import pytest
import torch

from gradellm_hf import Explanation, InvalidInputError
from gradellm_hf.interchange import load_inseq, save_inseq
from gradellm_hf.results.kept import classes_of
from gradellm_hf.text.rest import Rest
from tests.support.explained import explanation_of

#: A chat: special tokens, a template's words, a message, an answer of two sentences with a special token at its end.
PROMPT = ["<s>", "user", "\n", *(f" fact{i}{'.' if i % 6 == 5 else ''}" for i in range(24)), "<e>", "bot", "\n"]
ANSWER = [" It", " is", *(f" so{i}{'.' if i == 7 else ''}" for i in range(14)), ".", "<e>"]


def chat(**options):
    tokens = PROMPT + ANSWER
    start = len("".join(PROMPT[:3])) + 1
    segments = [{"name": "user message", "role": "user", "start": start, "end": len("".join(PROMPT[:27]))}]
    special = [token in ("<s>", "<e>") for token in tokens]
    return explanation_of(tokens, len(PROMPT), special=special, num_layers=2, segments=segments, **options)


def said(sources):
    """What `sources` say, in numbers that may be compared."""
    return [
        ([(source.start, source.share) for source in part.sources], sorted(part.ignored), list(part.ignored.values()))
        for part in sources
    ]


def assert_says_the_same(found, expected):
    for (shares, kinds, sizes), (wanted_shares, wanted_kinds, wanted_sizes) in zip(said(found), said(expected), strict=True):
        assert [place for place, _ in shares] == [place for place, _ in wanted_shares]
        assert [share for _, share in shares] == pytest.approx([share for _, share in wanted_shares], abs=1e-6)
        assert kinds == wanted_kinds
        assert sorted(sizes) == pytest.approx(sorted(wanted_sizes), abs=1e-6)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("ignore", [("special", "template", "sink", "own"), ("sink",), ("own", "template"), ()])
def test_what_an_answer_rests_on_and_what_is_not_counted_stay_the_same(signed, ignore):
    for seed in range(2):
        whole = chat(signed=signed, seed=seed)
        compact = whole.compact()
        assert compact.attributions.count_nonzero() < 0.6 * whole.attributions.count_nonzero()
        for by in ("token", "word", "sentence", "message"):
            for of in ("answer", "sentence", "token"):
                assert_says_the_same(compact.sources(by, of, ignore=ignore), whole.sources(by, of, ignore=ignore))
        assert compact.render(ignore=ignore) == whole.render(ignore=ignore)
        torch.testing.assert_close(compact.trace().attributions, whole.trace().attributions)


@pytest.mark.parametrize("keep", ["top", 3])
def test_what_is_left_out_adds_up_to_the_sums_in_float64(keep):
    whole = chat(signed=True)
    compact, classes = whole.compact(keep), classes_of(whole).tolist()
    for heatmap, kept, rest in [
        (whole.attributions, compact.attributions, compact.rest),
        *((whole.layer_attributions[i], compact.layer_attributions[i], compact.layer_rest.of(i)) for i in range(2)),
    ]:
        for n, row in enumerate(heatmap.double().tolist()):
            for number in range(max(classes) + 1):
                inside = [i for i, one in enumerate(classes) if one == number]
                strongest = sorted((abs(row[i]) for i in inside), reverse=True)
                left = [abs(row[i]) for i in inside if kept[n, i] == 0]
                assert rest.sums[n, number] == torch.tensor(sum(left), dtype=torch.float64).float()
                assert rest.largest[n, number] == pytest.approx(max(left, default=0))
                expected = strongest[:3] if keep == 3 else [size for size in strongest if size >= 0.2 * strongest[0]]
                assert sorted((abs(row[i]) for i in inside if kept[n, i] != 0), reverse=True) == [x for x in expected if x]
            assert all(kept[n, i] in (0, heatmap[n, i]) for i in range(len(row)))
        torch.testing.assert_close(rest.total + kept.abs().sum(-1), heatmap.abs().sum(-1))


def test_where_a_score_that_is_left_out_could_count_it_is_said_how_much_they_are():
    whole = chat()
    for compact, by in ((whole.compact(1), "token"), (whole.compact(), {"some": " fact3 fact4"})):
        (part,), (exact,) = compact.sources(by, of="answer"), whole.sources(by, of="answer")
        total = whole.attributions.abs().sum()
        counted = 1 - sum(part.ignored.values())
        assert part.ignored["rest"] > 0.01
        assert "not kept" in str(compact.sources(by, of="answer"))
        assert part.ignored["own"] == pytest.approx(exact.ignored["own"]) or by == "token"
        scores = compact.attributions[:-1]  # of what counts, and of what does not, nothing is lost
        assert counted * (total - whole.attributions[-1].sum()) <= scores.sum() + 1e-4
    assert "rest" not in whole.compact(len(PROMPT)).sources("token", of="answer")[0].ignored


def test_nobody_is_told_that_a_score_is_zero_that_was_not_kept(tmp_path):
    compact = chat().compact()
    step = compact.to_dict()["steps"][4]
    assert step["rest"] == pytest.approx(compact.rest.total[4].item(), rel=1e-5)
    assert chat().to_dict()["steps"][4]["rest"] is None
    table = compact.to_dataframe()
    assert len(table) == compact.attributions.count_nonzero()
    assert table["rest"][0] == compact.rest.total[0]
    save_inseq(compact, tmp_path / "a.json")
    assert "not kept" in compact.compact(1).aggregate("sentence").render()
    torch.testing.assert_close(load_inseq(tmp_path / "a.json")[0].attributions, compact.attributions)


def test_what_is_left_out_goes_along_into_larger_units_and_other_scales():
    whole, compact = chat(), chat().compact(2)
    by_sentence, found = (each.aggregate("sentence") for each in (whole, compact))
    torch.testing.assert_close(
        found.attributions.sum(-1) + found.rest.total, by_sentence.attributions.sum(-1), rtol=1e-5, atol=0
    )
    assert found.rest.largest is None
    shares = compact.normalize("sum")
    torch.testing.assert_close(shares.attributions.sum(-1) + shares.rest.total, torch.ones(len(ANSWER)))
    largest = compact.normalize("max")
    torch.testing.assert_close(largest.attributions, whole.normalize("max").attributions * (compact.attributions != 0))
    torch.testing.assert_close(largest.rest.sums, compact.rest.sums / whole.attributions.amax(-1, keepdim=True))


def test_a_trace_through_scores_that_are_missing_is_refused():
    with pytest.raises(InvalidInputError, match="Scores that count in the trace were not kept"):
        chat().compact(1).trace()


def test_to_keep_fewer_later_is_to_keep_fewer_at_once():
    whole = chat()
    later, at_once = whole.compact(4).compact(2), whole.compact(2)
    assert later.attributions.equal(at_once.attributions)
    torch.testing.assert_close(later.rest.sums, at_once.rest.sums)
    assert later.rest.largest.equal(at_once.rest.largest)
    again = at_once.compact("top").compact("top")
    assert again.attributions.equal(whole.compact(2).compact("top").attributions)


def test_kinds_that_become_known_later_do_not_hide_what_is_left_out():
    whole = chat()
    unknown = dataclasses.replace(whole, segments=None).compact()
    compact = dataclasses.replace(unknown, segments=whole.segments)  # the template was text like any other
    (part,) = compact.sources("token", of="answer")
    total = sum(part.ignored.values())
    (exact,) = whole.sources("token", of="answer")
    assert total == pytest.approx(sum(exact.ignored.values()), abs=1e-5)
    assert part.ignored["rest"] > 0
    assert "rest" not in exact.ignored


def test_steps_that_are_not_explained_leave_nothing_out():
    whole = chat()
    explained = [n in (2, 5) for n in range(len(ANSWER))]
    some = dataclasses.replace(
        whole, explained=explained, attributions=whole.attributions * torch.tensor(explained)[:, None], layer_attributions=None
    )
    compact = some.compact()
    assert (compact.rest.total > 0).tolist() == explained
    assert_says_the_same(compact.sources("token", of="answer"), some.sources("token", of="answer"))
    assert compact.layer_rest is None


def test_no_generated_token_leaves_nothing_out():
    compact = explanation_of(["a", "b"], 2).compact()
    assert compact.rest.total.shape == (0,)


@pytest.mark.parametrize("keep", [0, -1, 2.0, True, "all", None, [3]])
def test_what_is_kept_is_top_or_a_number(keep):
    with pytest.raises(InvalidInputError, match=r'`keep` must be "top"'):
        chat().compact(keep)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sums": torch.zeros(3, 2)}, "`rest`: `sums` must have shape"),
        ({"classes": torch.full((len(PROMPT + ANSWER),), 9, dtype=torch.uint8)}, "`classes` are more than"),
        ({"classes": torch.zeros(len(PROMPT + ANSWER), dtype=torch.uint8)}, "units of the prompt and of the generated text"),
        ({"largest": torch.full((len(ANSWER), 6), torch.nan)}, "not finite"),
    ],
)
def test_what_is_left_out_must_be_of_these_heatmaps(change, message):
    compact = chat().compact()
    rest = Rest(**{"classes": compact.rest.classes, "sums": compact.rest.sums, "largest": compact.rest.largest, **change})
    with pytest.raises(InvalidInputError, match=message):
        dataclasses.replace(compact, rest=rest)


def test_json_of_what_was_reduced_is_json():
    assert json.loads(chat().compact().to_json())["steps"][0]["rest"] > 0
    assert isinstance(chat().compact(), Explanation)
