"""Exactness on the device: every attention kernel, cache and placement, against a CPU in float64, and engine against engine."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import dispatch_model
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CompileConfig, PreTrainedModel

from gradellm_hf import GradELLMConfig, explain_generate, explain_sequences
from gradellm_hf.architecture.tolerances import HEATMAPS, relative_difference

from .models import SMALL_LLAMA, TINY, llama, random_ids, random_model, writing
from .report import Row, is_installed, not_run, with_target
from .setting import Setting

TITLE = "Exactness: largest difference of any layer's heatmap, relative to the largest score"
ENGINES = ("replay", "stepwise")
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
#: The package that makes an attention implementation of Transformers, which would otherwise be looked for on a model hub.
FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def rows(setting: Setting) -> Iterator[Row]:
    shape = setting.pick(SMALL_LLAMA, TINY)
    comparisons = [_Comparison(setting, shape, dtype) for dtype in (torch.float32, torch.bfloat16)]
    for comparison in comparisons:
        yield from comparison.rows()
    for comparison in comparisons:  # last, as compilers take minutes
        yield comparison.compiled()


class _Comparison:
    """One model in one dtype, on the device; the reference has the same weights in float64, on a CPU.

    The reference is the stepwise engine: one token at a time, ordinary autograd. Transformers computes norms and rotary angles
    in float32 even then, which is far below what is tolerated.
    """

    def __init__(self, setting: Setting, shape: dict[str, Any], dtype: torch.dtype):
        self.setting, self.dtype, self.name = setting, dtype, str(dtype).removeprefix("torch.")
        self.tolerance = HEATMAPS.of(dtype)
        self.prompt_length, self.num_steps = setting.pick((128, 12), (20, 4))
        self.host = random_model(llama(shape), "cpu", dtype)
        self.exact = copy.deepcopy(self.host).double()
        self.model = copy.deepcopy(self.host).to(setting.device)
        self.prompt = random_ids(self.model.config, self.prompt_length, setting.device)
        self.text = random_ids(self.model.config, self.prompt_length + self.num_steps, setting.device)
        self._references: dict[tuple[int, ...], Tensor] = {}

    def rows(self) -> Iterator[Row]:
        yield self._attempt("stepwise, on the CPU", self._given, self.host, ("stepwise",))
        yield self._attempt("given text, kernels as torch chooses them", self._given, self.model)
        for name, backend in KERNELS.items():
            yield self._attempt(f"given text, {name} kernel", self._kernel, backend)
        yield self._attempt("offloaded cache", self._cache, "offloaded")
        for implementation, package in FLASH_PACKAGES.items():
            yield self._attempt(f"`{implementation}`", self._flash_attention, implementation, package)
        for places in self._places():
            yield self._attempt(f"layers on {', '.join(map(str, places))}", self._spread, places)

    def compiled(self) -> Row:
        return self._attempt("static cache, `torch.compile`", self._cache, "static")

    def _attempt(self, what: str, compare: Callable[..., "dict[str, Any] | str"], *arguments: Any) -> Row:
        return self.setting.attempt(f"{self.name}, {what}", self._row, compare, *arguments)

    def _row(self, setting: Setting, what: str, compare: Callable[..., "dict[str, Any] | str"], *arguments: Any) -> Row:
        found = compare(*arguments)
        if isinstance(found, str):
            return not_run(what, found)
        differences = {name: value for name, value in found.items() if isinstance(value, float)}
        measured = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
        if note := found.pop("note", ""):
            measured += f"; {note}"
        met = found.get("same_text", True) and all(value <= self.tolerance for value in differences.values())
        return with_target(what, measured, f"<= {self.tolerance:.0e}", met, **found)

    # What is compared, and how.

    def _reference(self, text: Tensor) -> Tensor:
        key = tuple(text[0].tolist())
        if key not in self._references:
            out = explain_sequences(self.exact, text.cpu(), self.prompt_length, explain_config=_config("stepwise"))
            self._references[key] = out.layer_attributions
        return self._references[key]

    def _differences(self, explained: dict[str, Any]) -> dict[str, Any]:
        """From the reference for the same text, and of the engines from one another if they have explained the same text."""
        heatmaps = {engine: out.layer_attributions.cpu() for engine, out in explained.items()}
        found = {
            f"{engine} from the reference": relative_difference(heatmaps[engine], self._reference(out.sequences))
            for engine, out in explained.items()
        }
        texts = [out.sequences.cpu() for out in explained.values()]
        if len(texts) > 1 and torch.equal(*texts):
            found["replay from stepwise"] = relative_difference(*(heatmaps[engine] for engine in ENGINES))
        return found

    def _given(self, model: PreTrainedModel, engines: tuple[str, ...] = ENGINES) -> dict[str, Any]:
        text = self.text.to(model.device)
        return self._differences({engine: _explain(model, text, self.prompt_length, engine) for engine in engines})

    def _written(self, model: PreTrainedModel, **options: Any) -> dict[str, Any]:
        """Text that is generated and explained in one call; `generate` alone must write the same."""
        options = {**writing(self.num_steps), **options}
        alone = model.generate(self.prompt, **options)
        explained = {
            engine: explain_generate(model, self.prompt, explain_config=_config(engine), **options) for engine in ENGINES
        }
        same = all(torch.equal(out.sequences, alone) for out in explained.values())
        return {**self._differences(explained), "same_text": same, "note": "" if same else "**other text than `generate`**"}

    # The variants: differences by name, or why there are none.

    def _kernel(self, backend: SDPBackend) -> "dict[str, Any] | str":
        """With a kernel alone; an engine that cannot, since the kernel takes no mask (flash), has math besides."""
        with sdpa_kernel([backend]), torch.no_grad():
            try:
                self.model(self.text)
            except RuntimeError as error:
                if not _is_no_kernel(error):
                    raise
                return f"torch has no such kernel for {self.name} on this device"
        explained, helped = {}, []
        for engine in ENGINES:
            try:
                explained[engine] = self._explain_with(sdpa_kernel([backend]), engine)
            except RuntimeError as error:
                if not _is_no_kernel(error):
                    raise
                helped.append(engine)
                explained[engine] = self._explain_with(sdpa_kernel([backend, SDPBackend.MATH]), engine)
        note = f"{' and '.join(helped)} with math where the kernel takes no mask" if helped else ""
        return {**self._differences(explained), "helped": helped, "note": note}

    def _explain_with(self, kernels: AbstractContextManager[Any], engine: str) -> Any:
        with kernels:
            return _explain(self.model, self.text, self.prompt_length, engine)

    def _cache(self, implementation: str) -> "dict[str, Any] | str":
        on_cuda = self.setting.device.type == "cuda"
        if implementation.startswith("offloaded") and not on_cuda:
            return "there is nothing to offload from on a CPU"
        options: dict[str, Any] = {}
        if not on_cuda:  # where `generate` does not compile by itself; without a compiler's minutes
            options["compile_config"] = CompileConfig(backend="eager", mode=None)
            options["compile_config"]._compile_all_devices = True
        before = _number_of_graphs()
        found = self._written(copy.deepcopy(self.model), cache_implementation=implementation, **options)
        found["compiled"] = _number_of_graphs() > before
        if implementation == "static" and not found["compiled"]:
            found["note"] += "**nothing was compiled**"
        return found

    def _flash_attention(self, implementation: str, package: str) -> "dict[str, Any] | str":
        if not is_installed(package):
            return f"{package} is not installed"
        if self.dtype == torch.float32:
            return "its kernels are for half precision"
        model = copy.deepcopy(self.model)
        model.set_attn_implementation(implementation)
        return self._written(model)

    def _places(self) -> Iterator[tuple[Any, ...]]:
        """Where the layers are, from the lowest on."""
        if self.setting.device.type != "cuda":
            yield "cpu", "disk"
            return
        first = self.setting.device.index or 0
        yield first, "cpu", "disk"
        if (count := torch.cuda.device_count()) > 1:
            yield tuple((first + i) % count for i in range(count))

    def _spread(self, places: tuple[Any, ...]) -> dict[str, Any]:
        model = copy.deepcopy(self.host)
        layers = len(model.model.layers)
        device_map = {f"model.layers.{i}": places[i * len(places) // layers] for i in range(layers)}
        device_map |= {
            "model.embed_tokens": places[0],
            "model.rotary_emb": places[0],
            "model.norm": places[0],
            "lm_head": places[0],
        }
        folder = self.setting.folder / f"{self.name}-{'-'.join(map(str, places))}"
        return self._written(dispatch_model(model, device_map, main_device=places[0], offload_dir=folder))


def _config(engine: str) -> GradELLMConfig:
    """Signed heatmaps of every layer: nothing hides behind a sum or a positive part."""
    return GradELLMConfig(engine=engine, positive_only=False, positive_part="layer", output_layer_attributions=True)


def _explain(model: Any, text: Tensor, prompt_length: int, engine: str) -> Any:
    return explain_sequences(model, text, prompt_length, explain_config=_config(engine))


def _number_of_graphs() -> int:
    """How many graphs `torch.compile` has made in this process."""
    return counters["stats"]["unique_graphs"]


def _is_no_kernel(error: RuntimeError) -> bool:
    """Whether torch says that none of the kernels that are allowed can compute this."""
    return any(said in str(error) for said in ("No available kernel", "No viable backend", "Invalid backend"))
