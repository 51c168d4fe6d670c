"""`torchrun tensor_parallel_worker.py FOLDER`: explains each model in the folder, its heads spread over the processes."""

import json
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from gradellm_hf import GradELLMConfig, UnsupportedArchitectureError, explain_generate, explain_sequences, verify

CONFIGS = {
    "replay": GradELLMConfig(output_layer_attributions=True),
    "signed": GradELLMConfig(positive_only=False, target="log_probability", layers=[0, 2]),
    "stepwise": GradELLMConfig(engine="stepwise", output_layer_attributions=True),
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


def main(folder):
    warnings.simplefilter("ignore")
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    prompts = {name: torch.tensor(values) for name, values in json.loads((folder / "prompts.json").read_text()).items()}
    for path in sorted(folder.glob("model-*")):
        model = AutoModelForCausalLM.from_pretrained(path, distributed_config=DistributedConfig(tp_plan="auto")).eval()
        split = model.model.layers[0].self_attn.q_proj.weight
        assert split.to_local().shape[0] * 2 == split.shape[0]
        tensors = {name: tensor.contiguous() for name, tensor in explain_all(model, prompts).items()}
        save_file(tensors, folder / f"{path.name}.{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
