"""The study of head weights: its texts are those of calibration, and frozen norms change gradients only."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from benchmarks.head_weights import measure, study
from benchmarks.head_weights.frozen import frozen_norms
from gradellm_hf import GradELLMConfig
from gradellm_hf.architecture.facts import look_at
from gradellm_hf.calibration import texts
from gradellm_hf.jobs.prompts import Prompt
from tests.support.evaluated import model_and_tokenizer
from tests.support.tiny_models import tiny_model

PROMPT = "The capital of Italy is Rome. The capital of France is Paris. The capital of Spain is"


def tiny_gemma3():
    sizes = {"vocab_size": 47, "hidden_size": 42, "intermediate_size": 31, "num_hidden_layers": 3, "head_dim": 10}
    config = Gemma3TextConfig(**sizes, num_attention_heads=6, num_key_value_heads=2, sliding_window=5)
    torch.manual_seed(0)
    return Gemma3ForCausalLM(config).double().eval()


@pytest.mark.parametrize("make", [lambda: tiny_model("llama"), tiny_gemma3], ids=["llama", "gemma3"])
def test_frozen_norms_leave_the_logits_as_they_are_and_change_the_gradient(make):
    model = make()
    embeddings = model.get_input_embeddings()(torch.arange(9)[None]).detach()
    found = []
    for frozen in (False, True, False):
        x = embeddings.clone().requires_grad_()
        with frozen_norms(model) if frozen else torch.enable_grad():
            logits = model(inputs_embeds=x).logits
        (gradient,) = torch.autograd.grad(logits[0, -1, 3], x)
        found.append((logits.detach(), gradient))
    (logits, gradient), (frozen_logits, frozen_gradient), (again, gradient_again) = found
    torch.testing.assert_close(frozen_logits, logits)
    assert (frozen_gradient - gradient).norm() > 0.01 * gradient.norm()
    torch.testing.assert_close(again, logits, rtol=0, atol=0)
    torch.testing.assert_close(gradient_again, gradient, rtol=0, atol=0)


def test_a_frozen_norm_and_a_gated_mlp_hand_on_what_they_get():
    """With norms and slopes as constants and halves at the product, gradient times input is the output of a gated MLP."""
    model = tiny_model("llama")
    mlp, norm = model.model.layers[0].mlp, model.model.layers[0].input_layernorm
    x = torch.randn(4, model.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(next(mlp.parameters()).dtype)
    for module in (mlp, norm):
        with frozen_norms(model):
            given = x.clone().requires_grad_()
            output = module(given)[:, 2].sum()
        (gradient,) = torch.autograd.grad(output, given)
        torch.testing.assert_close((gradient * x).sum(), output.detach())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight texts of two kinds."""
    model, tokenizer = model_and_tokenizer()
    folder = tmp_path_factory.mktemp("texts")
    for number in range(8):
        found = measure.measured(look_at(model), tokenizer, Prompt(PROMPT), f"0-{number}")
        save_file(found, folder / f"{number:03d}-{('news', 'code')[number % 2]}.safetensors")
    return folder


def test_what_is_measured_of_a_text_is_what_calibration_measures():
    model, tokenizer = model_and_tokenizer()
    options = {"num_tokens": 12, "num_sources": 12, "batch_size": 3}
    expected = texts.measure(look_at(model), tokenizer, Prompt(PROMPT), GradELLMConfig(), "0-5", **options)
    found = measure.measured(look_at(model), tokenizer, Prompt(PROMPT), "0-5")
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x)


def test_the_attention_to_what_a_mask_hides_is_about_half_of_it(folder):
    read = study.read(folder)
    hidden = read.tensors["masked-attention"].sum(-1) / (read.shape[0] * read.shape[1])  # in each head it adds up to 1
    assert 0 <= hidden.min() < 0.4 < hidden.mean() + 0.2 < 0.8 < hidden.max() + 0.3 <= 1.3


def test_every_row_of_the_table_is_judged_on_kinds_that_were_held_out(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["study", str(folder), "--at2", str(tmp_path / "at2.safetensors")])
    monkeypatch.setattr(study, "_AT2_STEPS", 3)
    study.main()
    table = capsys.readouterr().out
    assert table.startswith("8 texts of 2 kinds")
    assert "**" in next(line for line in table.splitlines() if line.startswith("| magnitude |"))
    assert table.count("\n| ") == 1 + len(study.rows(study.read(folder)))
    assert (tmp_path / "at2.safetensors").exists()
