"""Two processes that share the heads of a model: each returns the heatmaps that one process with all heads returns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_llama import assert_same_heatmaps, padded_prompts
from tensor_parallel_worker import CONFIGS, explain_all
from transformers import AutoConfig, AutoModelForCausalLM

_SIZES = {
    "vocab_size": 98,
    "hidden_size": 48,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
MODELS = {
    "llama": {"model_type": "llama", **_SIZES, "num_hidden_layers": 3},
    "llama with a head for every key": {"model_type": "llama", **_SIZES, "num_key_value_heads": 6},
    "llama whose vocabulary and width do not divide": {
        "model_type": "llama",
        **_SIZES,
        "vocab_size": 97,
        "intermediate_size": 45,
    },
    "mistral with a window": {"model_type": "mistral", **_SIZES, "sliding_window": 6},
    "qwen2": {"model_type": "qwen2", **_SIZES},
    "qwen3 of another width": {"model_type": "qwen3", **_SIZES, "head_dim": 10},
    "mixtral": {
        "model_type": "mixtral",
        **_SIZES,
        "intermediate_size": 64,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "olmo2, whose heads are put together before attention": {"model_type": "olmo2", **_SIZES},
    "phi3, the same in one projection": {"model_type": "phi3", **_SIZES},
    "gpt_neox, one projection in parts": {"model_type": "gpt_neox", **_SIZES},
    "granite_swa with attention sinks": {"model_type": "granite_swa", **_SIZES, "sliding_window": 6},
    "deepseek_v2 with latent keys": {
        "model_type": "deepseek_v2",
        **_SIZES,
        "num_key_value_heads": 6,
        "kv_lora_rank": 10,
        "q_lora_rank": 12,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "first_k_dense_replace": 2,
    },
}
PROMPTS = padded_prompts()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By model: the tensors of one process, and those of each of two."""
    folder = tmp_path_factory.mktemp("tensor parallel")
    (folder / "prompts.json").write_text(json.dumps({name: x.tolist() for name, x in PROMPTS.items()}))
    expected = {}
    for number, (name, values) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values)).eval()
        model.save_pretrained(folder / f"model-{number}")
        expected[name] = explain_all(model, PROMPTS)
    worker = Path(__file__).with_name("tensor_parallel_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", worker, folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(worker.parents[1])}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-9000:]
    return {
        name: (expected[name], [load_file(folder / f"model-{number}.{rank}.safetensors") for rank in range(2)])
        for number, name in enumerate(MODELS)
    }


@pytest.mark.parametrize("name", MODELS)
def test_every_process_returns_what_one_process_with_all_heads_returns(results, name):
    expected, both = results[name]
    assert {f"{config}.attributions" for config in CONFIGS if config != "paper"} < set(expected)
    for tensors in both:
        assert set(tensors) >= set(expected)
        for key in expected:
            tensor = tensors[key]
            if key.endswith("sequences"):
                assert torch.equal(tensor, expected[key])
            elif key.endswith("attributions"):
                assert_same_heatmaps(tensor, expected[key], 2e-4)


@pytest.mark.parametrize("name", MODELS)
def test_both_engines_agree_in_every_process(results, name):
    for tensors in results[name][1]:
        assert tensors["verify"].item() < 1e-4


def test_processes_that_differ_do_the_same_all_the_same(results):
    expected, both = results["llama"]
    for tensors in both:
        for key in ("differ.memory", "differ.verdict"):
            assert_same_heatmaps(tensors[key], expected["given.attributions"], 2e-4)


def test_weights_that_are_split_without_the_heads_are_not_added_up(results):
    expected, both = results["llama"]
    for tensors in both:
        assert_same_heatmaps(tensors["fsdp"], expected["given.attributions"])


def test_the_paper_preset_sees_all_heads(results):
    for name in ("llama", "phi3, the same in one projection", "gpt_neox, one projection in parts"):
        assert all("paper.attributions" in tensors for tensors in results[name][1])
    assert "paper.attributions" not in results["qwen3 of another width"][0]
