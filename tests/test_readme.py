"""The README's code runs as it stands, on a local copy of the model that it names."""

import re
from pathlib import Path

import pytest

from gradellm_hf.demo_model import smollm2_folder

README = Path(__file__).parents[1] / "README.md"
MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_every_python_block_of_the_readme_runs_in_order(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert sum(MODEL_NAME in block for block in blocks) == 1
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for number, block in enumerate(blocks, 1):
        source = block.replace(MODEL_NAME, str(smollm2_folder()))
        exec(compile(source, f"README.md, block {number}", "exec"), namespace)
    assert len(capsys.readouterr().out.splitlines()) >= namespace["out"].step_mask.sum()


def test_the_quick_start_is_ten_lines():
    quick_start = README.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert len([line for line in quick_start.splitlines() if line.strip()]) == 10


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8")))
def test_the_files_that_the_readme_points_to_exist(path):
    assert (README.parent / path).exists()
