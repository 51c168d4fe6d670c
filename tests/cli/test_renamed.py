"""Commands take the model and how it is loaded in one way; old names of options work for one release, with a warning."""

import argparse
import importlib

import pytest
import torch

from gradellm_hf import load_dataset_explanations
from gradellm_hf.cli import main
from tests.support.dataset_job import write_job

WITH_MODEL = ("explain", "dataset", "evaluate", "verify")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    write_job(folder, 3)
    return folder


def test_every_command_takes_the_model_first_and_the_same_options_to_load_it():
    known = {}
    for name in WITH_MODEL:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"gradellm_hf.cli.{name}").add_arguments(parser)
        positional, *others = [action for action in parser._actions if not action.option_strings]
        assert (positional.metavar, others) == ("MODEL", [])
        (group,) = [group for group in parser._action_groups if group.title == "loading the model"]
        known[name] = [(action.option_strings, action.default, action.help) for action in group._group_actions]
        assert any("--gguf-file" in options for options, _, _ in known[name])
    assert all(options == known["explain"] for options in known.values())


@pytest.mark.parametrize("joined", [False, True], ids=["in two words", "in one"])
def test_old_options_mean_what_the_new_ones_mean(work, tmp_path, capsys, joined):
    model, prompts, config = str(work / "model"), str(work / "prompts.jsonl"), '{"layers": 1}'
    common = ["--max-new-tokens", "2", "--output"]
    new = ["dataset", model, "--prompts", prompts, "--explain-config", config, *common, str(tmp_path / "new")]
    assert main(new) == 0
    assert "warning" not in capsys.readouterr().err
    old = [("--model", model), ("--input", prompts), ("--config", config)]
    words = ["=".join(pair) for pair in old] if joined else [word for pair in old for word in pair]
    assert main(["dataset", *words, *common, str(tmp_path / "old")]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warnings == [
        "gradellm: warning: --model is left out now, before MODEL; the next release no longer knows it",
        "gradellm: warning: --input is called --prompts now; the next release no longer knows it",
        "gradellm: warning: --config is called --explain-config now; the next release no longer knows it",
    ]
    found, expected = (load_dataset_explanations(tmp_path / name) for name in ("old", "new"))
    assert expected.manifest["explain_config"]["layers"] == 1
    assert found.manifest == expected.manifest
    for actual, explanation in zip(found, expected, strict=True):
        assert actual.text == explanation.text
        assert torch.equal(actual.attributions, explanation.attributions)


def test_the_model_has_one_name_and_must_be_given(work, capsys):
    for arguments in ([], [str(work / "model"), "--model", "another"]):
        with pytest.raises(SystemExit) as left:
            main(["dataset", *arguments, "--prompts", str(work / "prompts.jsonl"), "--output", str(work / "none")])
        assert left.value.code == 2
    assert "the following arguments are required: MODEL" in capsys.readouterr().err
    assert not (work / "none").exists()
