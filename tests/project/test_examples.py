"""The examples do what they say: `minimal.py` computes the package's numbers, and the notebook runs as it stands."""

import json
import os
import re
import runpy
import sys

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from gradellm_hf import Explanation, explain_generate
from gradellm_hf.demo_model import smollm2_folder
from tests.support import ROOT
from tests.support.dataset_job import tiny_llama, write_job
from tests.support.tiny_models import float64_islands, tiny_model

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
MINIMAL, NOTEBOOK, WRITTEN = EXAMPLES / "minimal.py", EXAMPLES / "quickstart.ipynb", EXAMPLES / "written_elsewhere.py"


@pytest.fixture(scope="module")
def minimal():
    return runpy.run_path(str(MINIMAL))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_minimal_example_computes_what_the_package_does(minimal, family):
    model = tiny_model(family, attn_implementation="eager")
    prompt = torch.randint(model.config.vocab_size, (1, 7), generator=torch.Generator().manual_seed(3))
    with float64_islands():
        out = explain_generate(model, prompt, max_new_tokens=4, do_sample=False)
        heatmaps = minimal["explain_text"](model, out.sequences[0], prompt_length=7)
    torch.testing.assert_close(heatmaps, out.attributions[0], rtol=0, atol=1e-9 * out.attributions.abs().max().item())
    assert heatmaps.dtype == torch.float64
    assert heatmaps.abs().max() > 0


def test_the_minimal_example_needs_nothing_of_the_package():
    source = MINIMAL.read_text(encoding="utf-8")
    imports = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert not any("gradellm" in line or "model_patches" in line for line in imports)


def test_the_minimal_example_leaves_no_hooks(minimal):
    model = tiny_model("llama", attn_implementation="eager")
    token_ids = torch.tensor([1, 2, 3])
    minimal["explain_next_token"](model, token_ids, 4)  # from here on, Transformers keeps hooks of its own
    before = hooks(model)
    with pytest.raises(IndexError):
        minimal["explain_next_token"](model, token_ids, model.config.vocab_size)
    assert hooks(model) == before


def hooks(model):
    return [[*module._forward_hooks.values(), *module._forward_pre_hooks.values()] for module in model.modules()]


def test_the_minimal_example_runs_from_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["minimal.py", str(smollm2_folder()), "--max-new-tokens", "2"])
    runpy.run_path(str(MINIMAL), run_name="__main__")
    first, second = capsys.readouterr().out.splitlines()
    assert "' Rome' <-" in first
    assert "' Italy'" in first
    assert "<-" in second


def test_the_notebook_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADELLM_MODEL", str(smollm2_folder()))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("text/html" in output.get("data", {}) for output in outputs)
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert re.search(r"^Rome .*Italy", printed, flags=re.MULTILINE)


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


def test_text_of_another_engine_is_explained_if_the_model_that_wrote_it_is_the_same_and_else_refused(tmp_path, capsys):
    write_job(tmp_path, 1)
    main = runpy.run_path(str(WRITTEN))["main"]
    model, file, output = tmp_path / "model", tmp_path / "written.jsonl", tmp_path / "explained"
    stand_in = ["--stand-in", "Rome is the capital", "--max-new-tokens", "7"]
    assert main([str(model), str(file), "--output", str(output), *stand_in]) == 0
    assert "the same model" in capsys.readouterr().out
    written, explanation = json.loads(file.read_text()), Explanation.load(output / "000000.safetensors")
    assert explanation.token_ids == written["prompt_token_ids"] + written["token_ids"]
    assert len(explanation.attributions) == 7
    tiny_llama(seed=1).save_pretrained(model)
    assert main([str(model), str(file), "--output", str(tmp_path / "none")]) == 1
    assert "ANOTHER MODEL?" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
