"""Adapters from other packages: `tests/support/plugin` is one, known only by the entry point in its metadata."""

import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

from model_patches import ArchitectureAdapter, register_adapter, registered_adapters
from model_patches import registry as adapter_registry
from tests.support import ROOT, SUPPORT
from tests.support.third_party import Project
from tests.support.versions import since

pytestmark = pytest.mark.slow

PLUGIN = SUPPORT / "plugin"
#: It is written for the newest version, as a package of somebody else may be.
plugin_runs = since("5.24", "`cache`, by which the attention of the plugin gets its keys and values")

EXPLAIN_BOTH = """
    import sys, torch, transformers
    from tandem_lm.modeling import LLAMA_NAMES, TandemConfig, TandemForCausalLM
    from gradellm_hf import GradELLMConfig, UnsupportedArchitectureError, explain_generate

    sizes = dict(vocab_size=31, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
                 num_key_value_heads=2, eos_token_id=None, pad_token_id=None, bos_token_id=None)
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.normal_(1 if parameter.ndim == 1 else 0, 0.3)
    tandem = TandemForCausalLM(TandemConfig(**sizes)).eval()
    weights = llama.state_dict()
    for name in list(weights):
        for own, original in LLAMA_NAMES.items():
            if original in name:
                weights[name.replace(original, own)] = weights.pop(name)
    tandem.load_state_dict(weights)

    def explain(model, config):
        return explain_generate(model, torch.arange(3, 9)[None], max_new_tokens=4, do_sample=False, explain_config=config)

    try:
        for config in (GradELLMConfig.paper(), GradELLMConfig()):
            theirs, ours = explain(tandem, config), explain(llama, config)
            assert theirs.sequences.equal(ours.sequences) and ours.attributions.abs().max() > 1e-3
            torch.testing.assert_close(theirs.attributions, ours.attributions)
        print("explained as Llama is")
    except UnsupportedArchitectureError as error:
        print(error)
"""


@pytest.fixture
def site(tmp_path):
    """Writes packages as an installer lays them out, one folder of modules and metadata for all."""
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def install(site: Path, name: str, entry_points: dict[str, str], package: Path | None = None, **modules: str) -> None:
    metadata = site / f"{name.replace('-', '_')}-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    lines = [f"{key} = {value}" for key, value in entry_points.items()]
    (metadata / "entry_points.txt").write_text("\n".join([f"[{adapter_registry.ENTRY_POINT_GROUP}]", *lines, ""]))
    if package is not None:
        shutil.copytree(package, site / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    for module, code in modules.items():
        (site / f"{module}.py").write_text(textwrap.dedent(code))


def run(code: str, *folders: Path) -> str:
    """What a fresh interpreter prints that finds packages in `folders` before anywhere else."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*folders, ROOT]))}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def searched(site, monkeypatch):
    """The folder is searched in this process; adapters found in it, or registered by hand meanwhile, are forgotten."""
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(adapter_registry, "_by_hand", {})
    adapter_registry._installed.cache_clear()
    yield site
    adapter_registry._installed.cache_clear()


@plugin_runs
def test_an_installed_package_makes_its_architecture_known_to_the_paper_preset(site):
    project = Project(PLUGIN).table["project"]
    install(site, project["name"], project["entry-points"]["gradellm_hf.adapters"], PLUGIN / "tandem_lm")
    assert run(EXPLAIN_BOTH, site) == "explained as Llama is"


@plugin_runs
def test_without_its_entry_point_the_same_architecture_is_refused_with_what_was_looked_for():
    assert "TandemAttention has no `q_proj`" in run(EXPLAIN_BOTH, PLUGIN)


def test_an_adapter_of_an_installed_package_wins_over_ours_and_one_registered_by_hand_over_both(searched):
    assert registered_adapters()["llama"].key == "k_proj"
    adapter_registry._installed.cache_clear()
    code = """
        from model_patches import ArchitectureAdapter
        ADAPTER = ArchitectureAdapter(model_types=("llama", "other_llama"), key="installed")
    """
    install(searched, "other-llama", {"llama": "other_llama:ADAPTER"}, other_llama=code)
    by_type = registered_adapters()
    assert (by_type["llama"].key, by_type["other_llama"].key, by_type["qwen3"].key) == ("installed", "installed", "k_proj")
    register_adapter(ArchitectureAdapter(model_types=("llama",), key="by hand"))
    by_type = registered_adapters()
    assert (by_type["llama"].key, by_type["other_llama"].key) == ("by hand", "installed")


def test_an_adapter_registered_by_hand_before_packages_were_searched_wins_all_the_same(searched):
    code = """
        from model_patches import ArchitectureAdapter
        ADAPTER = ArchitectureAdapter(model_types=("llama",), key="installed")
    """
    install(searched, "late-llama", {"llama": "late_llama:ADAPTER"}, late_llama=code)
    register_adapter(ArchitectureAdapter(model_types=("llama",), key="by hand"))
    assert registered_adapters()["llama"].key == "by hand"


def test_an_entry_point_that_fails_is_left_out_with_its_name_and_error_and_breaks_nothing_else(searched):
    install(searched, "broken", {"broken": "broken_adapter:ADAPTER"}, broken_adapter="raise ImportError('no such backend')")
    install(searched, "absent", {"absent": "absent_module:ADAPTER"})
    install(searched, "mistyped", {"mistyped": "mistyped_adapter:ADAPTER"}, mistyped_adapter="ADAPTER = {'llama': 'q_proj'}")
    code = """
        from model_patches import ArchitectureAdapter
        ADAPTER = ArchitectureAdapter(model_types=("working_llama",))
    """
    install(searched, "working", {"working": "working_adapter:ADAPTER"}, working_adapter=code)
    with pytest.warns(RuntimeWarning, match="entry point") as caught:
        by_type = registered_adapters()
    messages = "\n".join(sorted(str(warning.message) for warning in caught))
    assert len(caught) == 3
    assert "`broken = broken_adapter:ADAPTER`" in messages
    assert "ImportError: no such backend" in messages
    assert "ModuleNotFoundError: No module named 'absent_module'" in messages
    assert "TypeError: Expected an ArchitectureAdapter, got dict" in messages
    assert {"working_llama", "llama"} <= by_type.keys()
    with warnings.catch_warnings(action="error"):  # said once, not at every model
        assert registered_adapters() == by_type
