"""Two processes that share a model: each returns the heatmaps that one process returns, or both say why they cannot."""

import copy
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from gradellm_hf import InvalidInputError, explain_generate, explain_sequences
from tests.support import ROOT, SUPPORT
from tests.support.small_llama import assert_same_heatmaps, padded_prompts, small_llama
from tests.support.tensor_parallel_worker import CONFIGS, explain_all

pytestmark = pytest.mark.distributed

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
    "qwen3_moe whose experts are spread too": {
        "model_type": "qwen3_moe",
        **_SIZES,
        "moe_intermediate_size": 32,
        "num_experts": 4,
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


#: What is said, by the beginning of a refusal's name.
REFUSALS = {
    "pipeline": r"layers are spread over processes \(pipeline parallelism\).*device_map",
    "flattened": r"`FullyShardedDataParallel` \(FSDP1\).*FSDP2",
    "heads": r"spread over 2 processes, but `num_key_value_heads` is [13], which",
    "another library": "DeepSpeed or Megatron",
    "texts": r"different texts to explain.*seed all alike",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder that two processes have worked on, and by model the tensors of one process."""
    folder = tmp_path_factory.mktemp("tensor parallel")
    (folder / "prompts.json").write_text(json.dumps({name: x.tolist() for name, x in PROMPTS.items()}))
    expected = {}
    for number, (name, values) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values)).eval()
        model.save_pretrained(folder / _folder(name))
        expected[name] = explain_all(model, PROMPTS)
    for heads in (1, 3):
        config = AutoConfig.for_model(**{**MODELS["llama"], "num_key_value_heads": heads})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / f"heads-{heads}")
    in_two_processes("tensor_parallel_worker.py", folder)
    return folder, expected


def in_two_processes(name, folder):
    worker = SUPPORT / name
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", worker, folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-9000:]


@pytest.fixture(scope="module")
def results(finished):
    """By model: the tensors of one process, and those of each of two."""
    folder, expected = finished
    return {
        name: (expected[name], [load_file(folder / f"{_folder(name)}.{rank}.safetensors") for rank in range(2)])
        for name in MODELS
    }


def _folder(name):
    return f"model-{list(MODELS).index(name)}{'-experts' if 'experts' in name else ''}"


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
        assert_same_heatmaps(tensors["fsdp.generated"], expected["replay.attributions"][:1])


def test_processes_that_share_only_weights_may_explain_texts_of_their_own_and_differ_in_memory(results):
    expected, both = results["llama"]
    for rank, tensors in enumerate(both):
        assert_same_heatmaps(tensors["fsdp.row"], expected["given.attributions"][rank : rank + 1])


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_cannot_be_explained_in_parts_is_refused_in_both_processes(finished, kind):
    for rank in range(2):
        messages = json.loads((finished[0] / f"refusals.{rank}.json").read_text())
        of_kind = [message for name, message in messages.items() if name.startswith(kind)]
        assert of_kind
        assert all(re.search(REFUSALS[kind], message) for message in of_kind)


def test_the_paper_preset_sees_all_heads(results):
    for name in ("llama", "phi3, the same in one projection", "gpt_neox, one projection in parts"):
        assert all("paper.attributions" in tensors for tensors in results[name][1])
    assert "paper.attributions" not in results["qwen3 of another width"][0]


def only_there_while_they_run(model):
    """Takes the weights out of a model and puts them into a module while it runs, forward and backward, as ZeRO-3 does."""
    for module in model.modules():
        if not (weights := dict(module.named_parameters(recurse=False))):
            continue
        whole = {name: weight.data for name, weight in weights.items()}

        def put_in(*_, weights=weights, whole=whole):
            for name, weight in weights.items():
                weight.data = whole[name]

        def take_out(*_, weights=weights):
            for weight in weights.values():
                weight.data = weight.new_empty(0)

        module.register_forward_pre_hook(put_in)
        module.register_forward_hook(take_out)
        module.register_full_backward_pre_hook(put_in)
        module.register_full_backward_hook(take_out)
        take_out()
    return model


@pytest.mark.parametrize("config", ["replay", "stepwise", "paper"])
def test_weights_that_are_elsewhere_until_their_module_runs_are_explained_exactly(config):
    model, config = small_llama(num_attention_heads=6, head_dim=8), CONFIGS[config]
    expected = explain_generate(model, **PROMPTS, max_new_tokens=5, explain_config=config)
    given = explain_sequences(model, PROMPTS["input_ids"], 4, explain_config=config)
    parted = only_there_while_they_run(copy.deepcopy(model))
    assert all(weight.shape == (0,) for weight in parted.parameters())
    out = explain_generate(parted, **PROMPTS, max_new_tokens=5, explain_config=config)
    assert_same_heatmaps(out.attributions, expected.attributions)
    given_out = explain_sequences(parted, PROMPTS["input_ids"], 4, explain_config=config)
    assert_same_heatmaps(given_out.attributions, given.attributions)
    with pytest.raises(InvalidInputError, match=f"the model has {model.config.vocab_size} tokens"):
        explain_sequences(parted, PROMPTS["input_ids"] + 97, 4)


def test_weights_that_deepspeed_spreads_are_explained_exactly(tmp_path):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    from tests.support import zero3_worker

    model = small_llama(num_attention_heads=6, head_dim=8)
    model.save_pretrained(tmp_path / "model")
    in_two_processes("zero3_worker.py", tmp_path)
    expected = zero3_worker.explain_all(model, torch.arange(5, 14)[None])
    for rank in range(2):
        tensors = load_file(tmp_path / f"zero3.{rank}.safetensors")
        assert tensors.pop("verify").item() < 1e-4
        assert set(tensors) == set(expected)
        for name, heatmaps in expected.items():
            assert_same_heatmaps(tensors[name], heatmaps)
