"""The biggest model that the card explains: as many of Llama 3 70B's layers as fit, then more in CPU memory and on a disk."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import psutil
import torch
from accelerate.utils import offload_weight, save_offload_index, set_module_tensor_to_device
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from gradellm_hf import explain_generate
from gradellm_hf.engines.memory import free_memory

from .models import LLAMA_70B_LAYERS, TINY, llama, random_ids, random_model, writing
from .report import Row, failed, is_out_of_memory, not_run
from .setting import Setting, gib

TITLE = "The biggest model that the card explains: Llama 3 70B's layers, bfloat16"
#: Of the card's free memory, taken by weights, if all are there. The rest is for what a run needs.
CARD_SHARES = (0.8, 0.88, 0.94, 0.98)
#: With offload: of the card, and then of what CPU memory and the disk have, in steps.
CARD_SHARE = 0.7
HOST_STEPS = (0.2, 0.4, 0.6)
DISK_STEPS = (0.25, 0.5)
_TINY_CARD, _TINY_HOST, _TINY_DISK = 450_000, 300_000, 200_000  # bytes


@dataclass(frozen=True)
class Plan:
    """How many layers are where; embeddings and head are on the card."""

    card: int
    host: int = 0
    disk: int = 0

    @property
    def layers(self) -> int:
        return self.card + self.host + self.disk


def rows(setting: Setting) -> Iterator[Row]:
    shape = setting.pick(LLAMA_70B_LAYERS, {**TINY, "initializer_range": 0.02})
    layer, rest = _sizes(shape)
    setting.release()
    free = setting.pick(free_memory(setting.device), _TINY_CARD)
    alone = [Plan(max(1, int((share * free - rest) // layer))) for share in CARD_SHARES]
    yield from _grow(setting, shape, alone, "on the card alone")
    on_card = max(1, int((CARD_SHARE * free - rest) // layer))
    host = setting.pick(_free_host_memory(), _TINY_HOST) / layer
    disk = setting.pick(shutil.disk_usage(setting.folder).free, _TINY_DISK) / layer
    offloaded = [Plan(on_card, max(1, int(share * host))) for share in HOST_STEPS]
    offloaded += [Plan(on_card, offloaded[-1].host, max(1, int(share * disk))) for share in DISK_STEPS]
    yield from _grow(setting, shape, offloaded, "with offload")


def _grow(setting: Setting, shape: dict[str, Any], plans: list[Plan], where: str) -> Iterator[Row]:
    """A row for each plan, from small to large, until memory or time ends."""
    expected = 0.0
    for before, plan in zip([None, *plans], plans, strict=False):
        if plan == before:
            continue
        config = llama({**shape, "num_hidden_layers": plan.layers})
        what = f"{where}: {plan.layers} layers ({plan.card} on the card, {plan.host} in CPU memory, {plan.disk} on the disk)"
        if expected > setting.seconds_left():
            yield not_run(what, f"it would take about {expected:.0f} s, and {setting.seconds_left():.0f} s are left")
            return
        start = setting.seconds_left()
        row = setting.attempt(what, _row, plan, config)
        yield row
        if row.outcome == "failed":
            return  # a bigger one does not fit either
        setting.release()
        # What is on a disk is read many times more slowly; more of it is added than there was before.
        expected = 1.6 * (start - setting.seconds_left()) * (4 if before is not None and plan.disk else 1)


def _row(setting: Setting, what: str, plan: Plan, config: LlamaConfig) -> Row:
    folder = setting.folder / f"{plan.card}-{plan.host}-{plan.disk}"
    try:
        return _measured(setting, what, plan, config, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measured(setting: Setting, what: str, plan: Plan, config: LlamaConfig, folder: Path) -> Row:
    model = build(setting.device, plan, config, folder)
    num_steps = setting.pick(16, 6) if plan.layers == plan.card else 4
    prompt, length = random_ids(config, setting.pick(512, 24), setting.device), writing(num_steps)
    sizes, times = {}, {}

    def run(name: str, call: Any) -> None:
        sizes[name] = setting.peak_memory(lambda: times.update({name: setting.timed(call)}))

    run("generate", lambda: model.generate(prompt, **length))
    out = []
    try:
        run("explain_generate", lambda: out.append(explain_generate(model, prompt, **length)))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        row = failed(what, error)
        row.measured += f" (but `generate` took {times['generate']:.1f} s, {gib(sizes['generate'])})"
        return row
    if not bool((out[0].attributions.sum(-1) > 0).all()):
        raise AssertionError("some of the tokens have no heatmap")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    figures = "; ".join(f"{name} {times[name]:.1f} s, {gib(sizes[name])}" for name in times)
    values = {"parameters": parameters, "seconds": times, "memory": sizes, "layers": plan.layers}
    return Row(
        f"{what}, {parameters / 1e9:.2f} B, P={prompt.shape[1]}, N={num_steps}", f"{figures} (first calls)", values=values
    )


def build(device: torch.device, plan: Plan, config: LlamaConfig, folder: Path) -> Any:
    """A model with random weights, each of which is made for the place where it stays."""
    if plan.layers == plan.card:
        return random_model(config, device, torch.bfloat16)
    torch.manual_seed(0)
    with accelerate.init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    places: list[Any] = [device] * plan.card + ["cpu"] * plan.host + ["disk"] * plan.disk
    device_map = {f"model.layers.{i}": place for i, place in enumerate(places)}
    device_map |= dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"), device)
    index: dict[str, Any] = {}
    folder.mkdir(parents=True)
    for name, place in device_map.items():
        for key, weight in model.get_submodule(name).named_parameters(prefix=name):
            value = _random_weight(weight, device)
            if place == "disk":
                index = offload_weight(value.cpu(), key, folder, index)
            else:
                set_module_tensor_to_device(model, key, place, value=value, dtype=value.dtype)
    save_offload_index(index, folder)
    return accelerate.dispatch_model(model, device_map, main_device=device, offload_dir=folder)


def _random_weight(weight: nn.Parameter, device: torch.device) -> Tensor:
    """Made on the device, which is many times faster than a CPU."""
    value = torch.empty(weight.shape, dtype=weight.dtype, device=device)
    return value.fill_(1) if value.ndim == 1 else value.normal_(std=0.02)


def _free_host_memory() -> int:
    """Bytes, also in a container that may not have all of the machine's."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no such files, or "max"
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free


def _sizes(shape: dict[str, Any]) -> tuple[int, int]:
    """Bytes of a layer, and of all that is not one, in bfloat16."""
    with torch.device("meta"):
        one, two = (AutoModelForCausalLM.from_config(llama({**shape, "num_hidden_layers": n})) for n in (1, 2))
    numbers = [sum(parameter.numel() for parameter in model.parameters()) for model in (one, two)]
    layer = numbers[1] - numbers[0]
    return 2 * layer, 2 * (numbers[0] - layer)
