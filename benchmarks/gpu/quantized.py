"""Quantised models on the device: against the same model with its weights dequantised, and what explaining costs."""

import importlib
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from gradellm_hf import GradELLMConfig, explain_generate, explain_sequences
from gradellm_hf.architecture.tolerances import HEATMAPS, REPLAYED_LOGITS, logits_difference, relative_difference

from .models import llama, random_ids, random_model, writing
from .packing import GROUP, Quantized, awq_tensors, gptq_tensors, quantize
from .report import Row, is_installed, not_run, with_target
from .setting import Setting

TITLE = "Quantised models: heatmaps against those of the dequantised weights, relative to the largest score"
#: Widths that all kernels take: multiples of 128.
_SHAPE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 12, "num_attention_heads": 16}
_SHAPE |= {"num_key_value_heads": 8, "vocab_size": 8192, "max_position_embeddings": 2048}
_TINY_SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
_TINY_SHAPE |= {"num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 512}

#: A model that is quantised, and an ordinary one with the same weights; made before the former first runs, as libraries then
#: pack weights anew. Or why there is none.
Pair = "tuple[PreTrainedModel, PreTrainedModel] | str"


def rows(setting: Setting) -> Iterator[Row]:
    models = _Models(setting)
    for what, (packages, load) in models.kinds().items():
        missing = [package for package in packages if not is_installed(package)]
        if missing:
            yield not_run(what, f"{', '.join(missing)} is not installed")
        else:
            yield setting.attempt(what, _row, load)


def _row(setting: Setting, what: str, load: Callable[[], Any]) -> Row:
    loaded = load()
    if isinstance(loaded, str):
        return not_run(what, loaded)
    model, plain = loaded
    prompt_length, num_steps = setting.pick((256, 64), (24, 8))
    text = random_ids(model.config, prompt_length + num_steps, setting.device)

    def heatmaps(explained: Any, engine: str) -> Tensor:
        config = GradELLMConfig(engine=engine, positive_only=False, positive_part="layer", output_layer_attributions=True)
        return explain_sequences(explained, text, prompt_length, explain_config=config).layer_attributions

    with torch.no_grad():
        logits = logits_difference(model(text).logits, plain(text).logits)
    expected = heatmaps(plain, "stepwise")
    differences = {engine: relative_difference(heatmaps(model, engine), expected) for engine in ("replay", "stepwise")}
    del plain
    prompt, length = text[:, :prompt_length], writing(num_steps)
    explain_generate(model, prompt, **length)
    pairs = setting.pairs(lambda: model.generate(prompt, **length), lambda: explain_generate(model, prompt, **length), 5)
    ratio = statistics.median(explained / generated for generated, explained in pairs)
    rounds_activations = "8 bit" in what  # and not for each token by itself
    tolerance = REPLAYED_LOGITS.quantized if rounds_activations else HEATMAPS.of(torch.bfloat16)
    return with_target(
        what,
        f"replay {differences['replay']:.1e}, stepwise {differences['stepwise']:.1e}; logits of the two models {logits:.1e}; "
        f"explain_generate / generate {ratio:.2f} (P={prompt_length}, N={num_steps})",
        f"<= {tolerance:.0e}",
        all(difference <= tolerance for difference in differences.values()),
        **differences,
        logits=logits,
        ratio=ratio,
    )


class _Models:
    """The same weights, quantised in every way whose packages are there."""

    def __init__(self, setting: Setting):
        self.setting, self.folder = setting, setting.folder / "plain"
        self.config = llama(setting.pick(_SHAPE, _TINY_SHAPE))
        self.plain = random_model(self.config, "cpu", torch.float32)
        self.plain.save_pretrained(self.folder)

    def kinds(self) -> dict[str, tuple[tuple[str, ...], Callable[[], Any]]]:
        """By name: the packages that it needs, and how it is loaded."""
        bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
        return {
            "bitsandbytes, 8 bit": (("bitsandbytes",), lambda: self.by_library("BitsAndBytesConfig", load_in_8bit=True)),
            "bitsandbytes, 4 bit (NF4)": (("bitsandbytes",), lambda: self.by_library("BitsAndBytesConfig", **bits)),
            "torchao, int8 weights": (("torchao",), self.torchao),
            "Quanto, int8 weights": (("optimum.quanto",), lambda: self.by_library("QuantoConfig", weights="int8")),
            "GPTQ, 4 bit": (
                ("gptqmodel", "optimum.gptq"),
                lambda: self.from_checkpoint("gptq", gptq_tensors, desc_act=False, sym=False),
            ),
            "AWQ, 4 bit": (("gptqmodel",), lambda: self.from_checkpoint("awq", awq_tensors, version="gemm", zero_point=True)),
            "GGUF, packed (Q8_0)": (("gguf", "kernels"), self.gguf),
        }

    def by_library(self, config: str, **options: Any) -> Any:
        """Quantised by a library when the model is loaded."""
        return self._loaded(getattr(transformers, config)(**options))

    def torchao(self) -> Any:
        from torchao.quantization import Int8WeightOnlyConfig

        return self._loaded(transformers.TorchAoConfig(Int8WeightOnlyConfig()))

    def _loaded(self, quantization: Any) -> Any:
        model = AutoModelForCausalLM.from_pretrained(
            self.folder, quantization_config=quantization, dtype=torch.bfloat16, device_map={"": str(self.setting.device)}
        ).eval()
        return model, self._twin({name: dequantized(weight) for name, weight in model.named_parameters()}, torch.bfloat16)

    def from_checkpoint(self, method: str, tensors: Callable[[Quantized], dict[str, Tensor]], **options: Any) -> Any:
        """Loaded from a checkpoint that holds packed weights, as those on a hub do."""
        folder = self.setting.folder / method
        folder.mkdir()
        stored, weights = {}, {}
        for name, weight in self.plain.state_dict().items():
            if ".layers." in name and name.endswith("_proj.weight"):
                quantized = quantize(weight)
                weights[name] = quantized.dequantized()
                stored |= {f"{name.removesuffix('weight')}{key}": x for key, x in tensors(quantized).items()}
            else:
                weights[name] = stored[name] = weight.half()
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        quantization = {"quant_method": method, "bits": 4, "group_size": GROUP, **options}
        config = {**self.plain.config.to_dict(), "dtype": "float16", "quantization_config": quantization}
        (folder / "config.json").write_text(json.dumps(config))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, device_map={"": str(self.setting.device)})
        return model.eval(), self._twin(weights, torch.float16)

    def gguf(self) -> Any:
        """Loaded twice from one GGUF file: with packed weights, and dequantised."""
        if not hasattr(transformers, "GgufConfig"):
            return f"Transformers {transformers.__version__} does not leave GGUF weights packed"
        folder = self.setting.folder / "gguf"
        folder.mkdir()
        write_gguf(self.plain, folder / "model.gguf")
        models = [
            AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file="model.gguf",
                quantization_config=transformers.GgufConfig(dequantize=dequantize),
                dtype=torch.float32,
                device_map={"": str(self.setting.device)},
            ).eval()
            for dequantize in (False, True)
        ]
        if all(weight.is_floating_point() for _, weight in models[0].state_dict().items()):
            return "there is no kernel for packed weights here, so Transformers has dequantised them"
        return tuple(models)

    def _twin(self, weights: dict[str, Tensor], dtype: torch.dtype) -> PreTrainedModel:
        twin = random_model(self.config, self.setting.device, dtype)
        twin.load_state_dict({name: weights[name] for name, _ in twin.named_parameters()}, strict=False)
        return twin


def dequantized(weight: Tensor) -> Tensor:
    """The numbers that a quantised weight stands for, `[out, in]`."""
    if hasattr(weight, "quant_state"):
        functional = importlib.import_module("bitsandbytes.functional")
        return functional.dequantize_4bit(weight.data, weight.quant_state)
    if getattr(weight, "SCB", None) is not None:
        return weight.data * weight.SCB[:, None] / 127
    return weight.dequantize() if hasattr(weight, "dequantize") and type(weight) is not torch.nn.Parameter else weight.data


def write_gguf(model: PreTrainedModel, file: Path) -> None:
    """Writes a Llama as GGUF, its projections in Q8_0.

    GGUF has the rows of query and key projections in another order, which is not made here: models that are loaded from the
    file rotate other pairs of them than `model` does. They are compared with one another only.
    """
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, weight in model.state_dict().items():
        array, key = weight.float().numpy(), names.get_name(name, try_suffixes=(".weight",))
        if array.ndim == 2:
            writer.add_tensor(key, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
