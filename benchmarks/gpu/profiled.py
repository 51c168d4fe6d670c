"""Where replaying spends its time, and whether a fused kernel would pay.

The backward pass of position-local attention makes scores, softmax, `<g, v>` and their products as tensors of
[heads, queries, keys], one pass over memory each. A fused kernel would keep them on the chip and write only the heatmap,
[queries, keys]. What it could save at most is the time that these passes take: their bytes over the card's bandwidth.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradellm_hf import GradELLMConfig
from gradellm_hf.architecture.caches import fork_cache
from gradellm_hf.architecture.facts import explained_layers, look_at
from gradellm_hf.architecture.running import explainable
from gradellm_hf.engines.replay import replay
from gradellm_hf.sequences.given import given_sequences

from .models import LLAMA_7B, TINY, llama, random_ids, random_model
from .report import Row
from .setting import Setting

TITLE = "Where replaying spends its time, Llama 2 7B's shape, bfloat16"
TOP = 15
#: Kinds of kernels by what their names hold; the first that fits. Operators of a CPU profile are named `aten::...`.
KINDS = {
    "attention": r"flash|fmha|attention|cudnn_generated|sdpa",
    "matrix products": r"gemm|cutlass|xmma|nvjet|cublas|aten::(mm|bmm|addmm|baddbmm)$",
    "softmax": r"softmax",
    "reductions": r"reduce|aten::(sum|mean|amax|norm)",
    "copies": r"memcpy|memset|copy|aten::(clone|cat|fill_|zero_)|CatArray",
    "element-wise": r"elementwise|vectorized|pointwise|aten::(mul|add|sub|div|addcmul|masked_fill|where|silu|pow|rsqrt|neg)",
}
_PAYS_FROM = 0.1  # of the replay's time


def rows(setting: Setting) -> Iterator[Row]:
    model = random_model(llama(setting.pick(LLAMA_7B, TINY)), setting.device, torch.bfloat16)
    for prompt_length, num_steps in setting.pick([(1024, 128), (8192, 512)], [(120, 12)]):
        what = f"P={prompt_length}, N={num_steps}"
        found: list[Row] = []
        yield setting.attempt(f"{what}, replaying all tokens", _profiled, model, prompt_length, num_steps, found)
        yield from found


def _profiled(setting: Setting, title: str, model: Any, prompt_length: int, num_steps: int, into: list[Row]) -> Row:
    what = f"P={prompt_length}, N={num_steps}"
    run = _replay(setting, model, prompt_length, num_steps)
    run()
    seconds = min(setting.timed(run) for _ in range(3))
    kernels = kernel_times(setting, run)
    busy = sum(kernels.values())
    by_kind: dict[str, float] = {}
    for name, time in kernels.items():
        by_kind[kind_of(name)] = by_kind.get(kind_of(name), 0.0) + time
    traffic = Traffic(range(prompt_length, prompt_length + num_steps))
    with traffic:
        run()
    bandwidth = memory_bandwidth(setting)
    heatmaps = 4 * num_steps * (prompt_length + num_steps) * model.config.num_hidden_layers
    moved = traffic.element_wise + traffic.of_products
    saved = max(0.0, moved - heatmaps) / bandwidth
    shares = ", ".join(f"{kind} {time / busy:.0%}" for kind, time in sorted(by_kind.items(), key=lambda entry: -entry[1]))
    into.append(Row(f"{what}, kinds of kernels", shares, values=by_kind))
    verdict = (
        f"{'would' if saved >= _PAYS_FROM * seconds else 'would not'} pay: it saves at most {saved / seconds:.0%} of replaying"
    )
    into.append(
        Row(
            f"{what}, a fused kernel",
            f"{verdict}, {1000 * saved:.1f} ms. Over [heads, queries, keys], {traffic.passes} element-wise passes move "
            f"{traffic.element_wise / 1e9:.2f} GB and the matrix products {traffic.of_products / 1e9:.2f} GB, at "
            f"{bandwidth / 1e12:.2f} TB/s; the heatmaps alone are {heatmaps / 1e9:.3f} GB. Matrix products of all kinds: "
            f"{1000 * by_kind.get('matrix products', 0.0):.1f} ms; those over keys: {traffic.operations / 1e12:.3f} TFLOP",
            values={"saved": saved, "bandwidth": bandwidth, "bytes": moved, "heatmaps": heatmaps, "passes": traffic.passes},
        )
    )
    largest = sorted(kernels.items(), key=lambda entry: -entry[1])[:TOP]
    into += [
        Row(
            f"{what}, {place}. `{name[:100]}`",
            f"{time / busy:.1%}, {1000 * time:.2f} ms",
            values={"kernel": name, "seconds": time},
        )
        for place, (name, time) in enumerate(largest, 1)
    ]
    measured = f"{1000 * seconds:.1f} ms; kernels take {1000 * busy:.1f} ms of a run that is profiled"
    return Row(title, measured, values={"seconds": seconds, "busy": busy})


def _replay(setting: Setting, model: Any, prompt_length: int, num_steps: int) -> Callable[[], Any]:
    """The replay alone: as after `generate`, the cache of the prompt is there."""
    facts, config = look_at(model), GradELLMConfig()
    text = random_ids(model.config, prompt_length + num_steps, setting.device)
    sequences, layers = given_sequences(facts, text, prompt_length, None), explained_layers(facts, config)
    with explainable(model):
        cache = sequences.prefill(facts)

    def run() -> Any:
        with explainable(model):
            return replay(facts, sequences, config, layers, fork_cache(cache))

    return run


def kernel_times(setting: Setting, run: Callable[[], Any]) -> dict[str, float]:
    """Seconds by kernel; on a CPU, by operator, without the operators that it calls."""
    on_cuda = setting.device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_cuda else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        run()
        setting.synchronize()
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        if on_cuda and event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
            times[event.key] = times.get(event.key, 0.0) + event.self_device_time_total / 1e6
        elif not on_cuda and event.key.startswith("aten::"):
            times[event.key] = times.get(event.key, 0.0) + event.self_cpu_time_total / 1e6
    times = {name: time for name, time in times.items() if time > 0}
    if not times:
        raise RuntimeError("The profiler has seen no kernels. It needs CUPTI, and leave to read the card's counters.")
    return times


def kind_of(kernel: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.IGNORECASE)), "others")


class Traffic(TorchDispatchMode):
    """Counts what operations over keys read and write: those on tensors whose last dimension is a number of keys.

    Attributes:
        passes: Operations that are no matrix product.
        element_wise: Bytes that they read and write.
        of_products: Bytes of such tensors that matrix products read and write.
        operations: Floating-point operations of these products.

    Args:
        num_keys: The numbers of keys. No other dimension of the model may be among them.
    """

    def __init__(self, num_keys: range):
        super().__init__()
        self.num_keys = num_keys
        self.passes = self.element_wise = self.of_products = self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        written = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        name = function.overloadpacket.__name__
        is_product = name in ("bmm", "mm")
        looked_at = (read[0], *written) if is_product else (*read, *written)  # the keys themselves are on the right
        over_keys = [x for x in looked_at if x.ndim > 2 and x.shape[-1] in self.num_keys]
        if not over_keys or name.startswith(("empty", "new_empty")) or self._is_view(name, read, written):
            return result
        size = sum(min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) for x in over_keys)
        if is_product:
            self.of_products += size
            self.operations += 2 * written[0].numel() * read[0].shape[-1]
        else:
            self.passes += 1
            self.element_wise += size
        return result

    @staticmethod
    def _is_view(name: str, read: list[Tensor], written: list[Tensor]) -> bool:
        """Whether nothing was moved: the result is another look at what was given."""
        addresses = {x.untyped_storage().data_ptr() for x in read}
        return not name.endswith("_") and bool(written) and all(x.untyped_storage().data_ptr() in addresses for x in written)


def memory_bandwidth(setting: Setting) -> float:
    """Bytes per second that a large copy reads and writes."""
    source = torch.ones(setting.pick(2**29, 2**22), dtype=torch.bfloat16, device=setting.device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = min(setting.timed(lambda: target.copy_(source)) for _ in range(5))
    return 2 * source.numel() * source.element_size() / seconds
