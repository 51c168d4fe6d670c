"""`torchrun zero3_worker.py FOLDER`: explains the model in the folder, its weights spread by DeepSpeed's ZeRO-3."""

import sys
import warnings
from pathlib import Path

import deepspeed
import torch
from safetensors.torch import save_file
from transformers.integrations import HfDeepSpeedConfig

from gradellm_hf import GradELLMConfig, explain_generate, explain_sequences, verify
from tests.support.tensor_parallel_worker import load

CONFIGS = {"replay": GradELLMConfig(), "stepwise": GradELLMConfig(engine="stepwise"), "paper": GradELLMConfig.paper()}


def explain_all(model, ids):
    tensors = {name: explain_sequences(model, ids, 4, explain_config=config).attributions for name, config in CONFIGS.items()}
    tensors["generated"] = explain_generate(model, ids, max_new_tokens=5, do_sample=False).attributions
    return tensors


def main(folder):
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", category=UserWarning, module="gradellm_hf")  # that another engine was needed
    deepspeed.init_distributed("gloo")
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}  # no weight stays whole
    options = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
    kept = HfDeepSpeedConfig(options)  # while it lives, models are loaded in parts
    model = deepspeed.initialize(model=load(folder / "model"), config=options)[0].module.eval()
    assert kept.is_zero3()
    assert model.get_input_embeddings().weight.shape == (0,)
    tensors = explain_all(model, torch.arange(5, 14)[None])
    tensors["verify"] = torch.tensor([verify(model)])
    save_file(tensors, folder / f"zero3.{torch.distributed.get_rank()}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
