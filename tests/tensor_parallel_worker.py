"""`torchrun tensor_parallel_worker.py FOLDER`: explains each model in the folder, its heads spread over the processes."""

import json
import sys
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from gradellm_hf import GradELLMConfig, GradELLMError, UnsupportedArchitectureError, explain_generate, explain_sequences, verify
from gradellm_hf.heatmaps import Heatmaps
from gradellm_hf.identity import findings

CONFIGS = {
    "replay": GradELLMConfig(output_layer_attributions=True),
    "signed": GradELLMConfig(positive_only=False, target="log_probability", layers=[0, -1]),
    "stepwise": GradELLMConfig(engine="stepwise", output_layer_attributions=True),
    "heads": GradELLMConfig(positive_part="head", output_layer_attributions=True),
    "loosened": GradELLMConfig(spatial="loosened"),
    "paper": GradELLMConfig.paper(layers=2),
    "chunks": GradELLMConfig(step_chunk_size=2),
}


def explain_all(model, prompts):
    """The tensors of every configuration's explanation of a generation and of given text, and `verify`'s error, by name."""
    tensors = {}
    for name, config in CONFIGS.items():
        try:
            out = explain_generate(model, **prompts, max_new_tokens=5, do_sample=False, explain_config=config)
        except UnsupportedArchitectureError as error:
            if name != "paper" or "H * D must equal E" not in str(error):
                raise
            continue
        tensors[f"{name}.sequences"], tensors[f"{name}.attributions"] = out.sequences, out.attributions
        if out.layer_attributions is not None:
            tensors[f"{name}.layer_attributions"] = out.layer_attributions
    tensors["given.attributions"] = explain_sequences(model, prompts["input_ids"], 4).attributions
    tensors["verify"] = torch.tensor([verify(model)])
    return tensors


def explain_in_processes_that_differ(model, ids, rank):
    """One process has less memory than the other, and one finds that replaying is not exact."""
    tensors = {}
    with mock.patch("gradellm_hf.replay.chunk_size", return_value=1 + rank):
        tensors["differ.memory"] = explain_sequences(model, ids, 4).attributions
    with (
        mock.patch.object(findings(model), "verdicts", {}),
        mock.patch("gradellm_hf.self_check._check", return_value="of something" if rank else None),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        tensors["differ.verdict"] = explain_sequences(model, ids, 4).attributions
    assert any("stepwise engine, which is exact but slow: of something" in str(warning.message) for warning in caught)
    with (
        mock.patch.object(Heatmaps, "set_targets", side_effect=torch.OutOfMemoryError("allocating")),
        pytest.raises(GradELLMError, match=r"set a smaller `GradELLMConfig\(step_chunk_size=...\)`, below 5"),
    ):
        explain_sequences(model, ids, 4)
    return tensors


def explain_with_split_weights(path, ids):
    """FSDP splits weights and not heads: the mesh alone does not tell."""
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return explain_sequences(model, ids, 4).attributions


def main(folder):
    warnings.simplefilter("ignore")
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    prompts = {name: torch.tensor(values) for name, values in json.loads((folder / "prompts.json").read_text()).items()}
    for path in sorted(folder.glob("model-*")):
        model = AutoModelForCausalLM.from_pretrained(path, distributed_config=DistributedConfig(tp_plan="auto")).eval()
        split = next(weight for name, weight in model.named_parameters() if "layers.0" in name and hasattr(weight, "to_local"))
        assert split.to_local().numel() * 2 == split.numel()
        tensors = explain_all(model, prompts)
        if path.name == "model-0":
            ids = prompts["input_ids"]
            tensors |= explain_in_processes_that_differ(model, ids, rank)
            tensors["fsdp"] = explain_with_split_weights(path, ids)
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, folder / f"{path.name}.{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
