"""`torchrun tensor_parallel_worker.py FOLDER`: explains each model in the folder, its heads spread over the processes.

In `model-N-experts` the experts are spread too; `heads-N` cannot be spread over two processes.
"""

import datetime
import json
import sys
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from gradellm_hf import (
    GradELLMConfig,
    GradELLMError,
    HeadWeights,
    InvalidInputError,
    UnsupportedArchitectureError,
    explain_generate,
    explain_sequences,
    explain_stream,
    verify,
)
from gradellm_hf.architecture.identity import findings
from gradellm_hf.engines.heatmap_sums import Heatmaps

CONFIGS = {
    "replay": GradELLMConfig(output_layer_attributions=True),
    "signed": GradELLMConfig(positive_only=False, target="log_probability", layers=[0, -1]),
    "stepwise": GradELLMConfig(engine="stepwise", output_layer_attributions=True),
    "positive part of layers": GradELLMConfig(positive_part="layer", output_layer_attributions=True),
    "loosened": GradELLMConfig(spatial="loosened"),
    "paper": GradELLMConfig.paper(layers=2),
    "chunks": GradELLMConfig(step_chunk_size=2),
}


def weighted(model):
    """Configurations with weights for the heads of this model, every one of which counts differently."""
    shape = model.config.num_hidden_layers, model.config.num_attention_heads
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    weights = {feature: HeadWeights(values, feature, model.config.model_type) for feature in ("contribution", "magnitude")}
    return {
        "weighted": GradELLMConfig(head_weights=weights["magnitude"]),
        "weighted, stepwise": GradELLMConfig(head_weights=weights["contribution"], engine="stepwise"),
    }


def explain_all(model, prompts):
    """The tensors of every configuration's explanation of a generation and of given text, and `verify`'s error, by name."""
    tensors = {}
    for name, config in {**CONFIGS, **weighted(model)}.items():
        try:
            out = explain_generate(model, **prompts, max_new_tokens=5, do_sample=False, explain_config=config)
        except UnsupportedArchitectureError as error:
            if name != "paper" or "H * D must equal E" not in str(error):
                raise
            continue
        tensors[f"{name}.sequences"], tensors[f"{name}.attributions"] = out.sequences, out.attributions
        if out.layer_attributions is not None:
            tensors[f"{name}.layer_attributions"] = out.layer_attributions
    some = explain_generate(model, **prompts, max_new_tokens=5, do_sample=False, steps=[1, -1])
    tensors["some.attributions"] = some.attributions
    tensors["some given.attributions"] = explain_sequences(model, prompts["input_ids"], 4, steps=[-1]).attributions
    tensors["given.attributions"] = explain_sequences(model, prompts["input_ids"], 4).attributions
    tensors["verify"] = torch.tensor([verify(model)])
    return tensors


def explain_in_processes_that_differ(model, ids, rank):
    """One process has less memory than the other, and one finds that replaying is not exact."""
    tensors = {}
    with mock.patch("gradellm_hf.engines.replay.chunk_size", return_value=1 + rank):
        tensors["differ.memory"] = explain_sequences(model, ids, 4).attributions
    with (
        mock.patch.object(findings(model), "verdicts", {}),
        mock.patch("gradellm_hf.engines.self_check._check", return_value="of something" if rank else None),
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


def split_weights(path, **options):
    """FSDP2 splits weights and not heads: the mesh alone does not tell."""
    model = load(path)
    for module in (*model.model.layers, model):
        fully_shard(module, **options)
    return model


def explain_with_split_weights(path, ids, rank):
    """The processes may explain different texts of one length, and may have different amounts of memory."""
    tensors = {}
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
    tensors["fsdp"] = explain_sequences(split_weights(path, mesh=mesh), ids, 4).attributions
    model = split_weights(path)
    with mock.patch("gradellm_hf.engines.replay.chunk_size", return_value=1 + rank):
        tensors["fsdp.row"] = explain_sequences(model, ids[rank : rank + 1], 4).attributions
    model = load(path, fsdp_size=2)
    tensors["fsdp.generated"] = explain_generate(model, ids[:1], max_new_tokens=5, do_sample=False).attributions
    return tensors


def refusals(folder, ids, rank):
    """What is said of models whose parts do not suffice for an explanation, and of texts that differ, by name."""
    path, messages = folder / "model-0", {}

    def refused(name, error, explain, *args, **kwargs):
        with pytest.raises(error) as caught:
            explain(*args, **kwargs)
        messages[name] = str(caught.value)

    model = load(path, pp_size=2)
    refused("pipeline, given", UnsupportedArchitectureError, explain_sequences, model, ids, 4)
    refused("pipeline, generated", UnsupportedArchitectureError, explain_generate, model, ids, max_new_tokens=2)
    refused("pipeline, verified", UnsupportedArchitectureError, verify, model)
    for number in (1, 3):
        model = load(folder / f"heads-{number}", tp_plan="auto")
        refused(f"heads, {number}", UnsupportedArchitectureError, explain_generate, model, ids, max_new_tokens=2)
    for keeps_names in (True, False):
        model = FullyShardedDataParallel(load(path), use_orig_params=keeps_names, device_id=torch.device("cpu"))
        for before in (True, False):
            name = f"flattened, {keeps_names}, {before}"
            refused(f"{name}, generated", UnsupportedArchitectureError, explain_generate, model, ids, max_new_tokens=2)
            refused(f"{name}, inner", UnsupportedArchitectureError, explain_sequences, model.module, ids, 4)
            model(input_ids=ids)
    model = load(path)
    model.model.layers[0].self_attn.o_proj.weight.tensor_model_parallel = True  # DeepSpeed's and Megatron's mark
    refused("another library", UnsupportedArchitectureError, explain_sequences, model, ids, 4)
    model = load(path, tp_plan="auto")
    refused("texts, given", InvalidInputError, explain_sequences, model, ids + rank, 4)
    torch.manual_seed(rank)
    sampled = {"max_new_tokens": 8, "do_sample": True}
    refused("texts, sampled", InvalidInputError, explain_generate, model, ids, **sampled)
    refused("texts, streamed", InvalidInputError, lambda: list(explain_stream(model, ids, **sampled)))
    refused("texts, of other lengths", InvalidInputError, explain_sequences, split_weights(path), ids[:, : 9 - rank], 4)
    return messages


def load(path, **parallel):
    """A model whose parts are spread over the processes as `DistributedConfig(**parallel)` says."""
    config = DistributedConfig(**parallel) if parallel else None
    return AutoModelForCausalLM.from_pretrained(path, distributed_config=config).eval()


def main(folder):
    warnings.simplefilter("ignore")
    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=240))
    rank = torch.distributed.get_rank()
    prompts = {name: torch.tensor(values) for name, values in json.loads((folder / "prompts.json").read_text()).items()}
    for path in sorted(folder.glob("model-*")):
        experts = {"tp_size": 2, "ep_size": 2} if path.name.endswith("experts") else {}
        model = load(path, **(experts or {"tp_plan": "auto"}))
        split = next(weight for name, weight in model.named_parameters() if "layers.0" in name and hasattr(weight, "to_local"))
        assert split.to_local().numel() * 2 == split.numel()
        tensors = explain_all(model, prompts)
        if path.name == "model-0":
            ids = prompts["input_ids"]
            tensors |= explain_in_processes_that_differ(model, ids, rank)
            tensors |= explain_with_split_weights(path, ids, rank)
            (folder / f"refusals.{rank}.json").write_text(json.dumps(refusals(folder, ids, rank)))
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, folder / f"{path.name}.{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
