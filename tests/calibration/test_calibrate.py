"""`calibrate`: finds the head that decides, continues where it was stopped, and gives the same for the same seed."""

import pytest
import torch

from gradellm_hf import GradELLM, GradELLMConfig, HeadWeights, InvalidInputError, calibrate, explain_generate
from gradellm_hf.cli import main
from tests.support.dataset_job import contents
from tests.support.evaluated import model_and_tokenizer
from tests.support.small_llama import small_llama
from tests.support.tiny_tokenizers import byte_level_bpe

PROMPTS = [
    {"kind": kind, "prompt": text}
    for kind, text in [
        ("tales", "the old king of a small land had lost his people in winter"),
        ("tales", "one day he went out to find what was left of them by the sea"),
        ("news", "a ship was found by the old land, and his people came home in winter"),
        ("news", "the king was lost at sea one day, and what he left was small"),
        ("lists", "king, land, people, winter, sea, ship, day, home, old, small"),
        ("lists", "one, two, three, old, small, lost, found, left, came, went"),
    ]
]
SMALL = {"num_tokens": 4, "num_sources": 6}


def test_the_head_that_decides_gets_the_largest_weight():
    """In the only layer, head 0 decides. Heads 1 and 2 read alike and cancel each other, so that they change nothing."""
    tokenizer = byte_level_bpe()
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 12}
    model = small_llama(vocab_size=len(tokenizer), **sizes)
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[24:] = projection.weight[12:24]
        out = attention.o_proj.weight
        out[:, 24:] = -out[:, 12:24]
    weights = calibrate(model, tokenizer, PROMPTS, num_tokens=8, num_sources=12)
    assert weights.values.shape == (1, 3)
    assert weights.values[0].argmax() == 0
    assert weights.values[0, 1:].max() < 0.3 * weights.values[0, 0]
    held_out = weights.report["held_out"]
    assert held_out["after"]["rank"] > held_out["before"]["rank"] + 0.05
    assert held_out["after"]["pearson"] > held_out["before"]["pearson"] + 0.05


def test_the_weights_fit_the_model_and_say_how_they_were_learned():
    model, tokenizer = model_and_tokenizer()
    weights = calibrate(GradELLM(model, tokenizer), prompts=PROMPTS, **SMALL)
    assert weights.model_type == "llama"
    assert weights.report["prompts"] == 6
    assert 36 < weights.report["ablations"] <= 42  # six drawn of each, and its first token
    assert set(weights.report["by_fold"]) == {"tales", "news", "lists"}
    assert weights.report["feature"] == weights.feature
    inputs = tokenizer("the old king", return_tensors="pt")
    explain_generate(model, **inputs, max_new_tokens=2, explain_config=GradELLMConfig(head_weights=weights))


def test_a_calibration_that_was_stopped_goes_on_and_ends_as_one_that_was_not(tmp_path):
    model, tokenizer = model_and_tokenizer()
    expected = calibrate(model, tokenizer, PROMPTS, output_dir=tmp_path, **SMALL)
    whole = contents(tmp_path)
    files = sorted(tmp_path.glob("text-*"))
    assert len(files) == 6
    files[1].unlink()
    files[4].unlink()
    kept = files[0].stat().st_mtime_ns
    found = calibrate(model, tokenizer, PROMPTS, output_dir=tmp_path, **SMALL, batch_size=1)
    assert files[0].stat().st_mtime_ns == kept
    assert set(contents(tmp_path)) == set(whole)
    torch.testing.assert_close(found.values, expected.values, rtol=0.1, atol=0.05)  # other batches round otherwise
    files[2].write_bytes(files[2].read_bytes()[:-1])
    with pytest.raises(InvalidInputError, match=f"{files[2].name}.* not a file that `calibrate` wrote"):
        calibrate(model, tokenizer, PROMPTS, output_dir=tmp_path, **SMALL)
    for change in ({"seed": 1}, {"num_tokens": 5}, {"explain_config": GradELLMConfig(target="probability")}):
        with pytest.raises(InvalidInputError, match="another job"):
            calibrate(model, tokenizer, PROMPTS, output_dir=tmp_path, **{**SMALL, **change})


def test_the_seed_decides_what_the_model_writes_and_what_is_left_out_and_nothing_else_is_drawn():
    model, tokenizer = model_and_tokenizer()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (calibrate(model, tokenizer, PROMPTS, seed=seed, **SMALL) for seed in (3, 3, 4))
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"explain_config": GradELLMConfig(layers=1)}, "only `target` and `engine` of `explain_config` may differ"),
        ({"explain_config": GradELLMConfig(spatial="loosened")}, "only `target` and `engine`"),
        ({"explain_config": GradELLMConfig(target="contrast", contrast_token_ids=3)}, "without a contrast"),
        ({"num_prompts": 7}, "`num_prompts` must be .* from 2 to 6, got 7"),
        ({"num_tokens": 0}, "`num_tokens` must be .* got 0"),
        ({"num_sources": 1}, "`num_sources` must be .* got 1"),
        ({"batch_size": 0}, "`batch_size` must be .* got 0"),
        ({"prompts": [""] * 3}, "The prompt is empty"),
        ({"tokenizer": None}, "There is no tokenizer"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(options, message):
    model, tokenizer = model_and_tokenizer()
    with pytest.raises(InvalidInputError, match=message):
        calibrate(model, **{"tokenizer": tokenizer, "prompts": PROMPTS, **SMALL, **options})


def test_the_command_writes_the_weights_and_says_what_they_are_worth(tmp_path, capsys):
    model, tokenizer = model_and_tokenizer()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("no records")
    path = tmp_path / "weights.safetensors"
    command = ["calibrate", str(tmp_path / "model"), "--output", str(path)]
    assert main([*command, "--prompts", str(prompts)]) == 2
    assert main([*command, "--num-prompts", "8", "--job", str(tmp_path / "job"), "--seed", "2"]) == 0
    said = capsys.readouterr()
    assert "with these weights: rank correlation" in said.out
    weights = HeadWeights.load(path)
    assert weights.report["seed"] == 2
    assert len(weights.report["by_fold"]) == 8  # a prompt of each kind
    assert len(list((tmp_path / "job").glob("text-*"))) == 8
    assert main(["explain", str(tmp_path / "model"), "--prompt", "the old king", "--head-weights", str(path)]) == 0
