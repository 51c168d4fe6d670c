"""`python -m benchmarks.run`: measures speed and memory on SmolLM2-135M-Instruct and writes RESULTS.md next to this file."""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import gradellm_hf
from gradellm_hf import GradELLMConfig, explain_generate, explain_sequences, explain_stream
from gradellm_hf.checks.files import write_atomically
from gradellm_hf.demo_model import load_smollm2

from .dataset import dataset_rows
from .file_sizes import file_sizes_row
from .measuring import machine, median_and_range, timed
from .per_step_loop import explain_step
from .reports import report_rows

_HEADER = """# Results

Written by `make bench` on {date}: gradellm_hf {version}, torch {torch}, Transformers {transformers}, Python {python},
{machine}, {threads} threads. SmolLM2-135M-Instruct in float32, one prompt of random tokens, greedy. Times are ratios of runs
that alternate in one process: medians of {repetitions} after a warm-up, in brackets the smallest and the largest.

| what | measured | target |
|---|---|---|
"""

_FOOTER = """
How the figures are taken:

- `explain_generate / generate`: both called with the same arguments, one after the other.
- The explanation alone: `explain_sequences` on random tokens minus a pass over the prompt without gradients.
- The per-step loop (`benchmarks/per_step_loop.py`) runs the whole prefix forward and backward for every token, all layers;
  it is timed at {loop_steps} steps spread over the generation, and their mean is multiplied by `N`. It is compared with
  `explain_sequences` on the same text, which reads the prompt again.
- Peak memory: the peak resident memory of a process during `generate`, and during the whole of `explain_generate`.
- Weights on disk: the peak resident memory less what the process held before, after a warm-up (`benchmarks/offloading.py`).
- Each row by length has its own process, which runs once; from P=16384 on, random weights of the same shape.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--parts", nargs="*", help="only some of the parts, by name; nothing is written")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    model, _ = load_smollm2()
    parts: dict[str, Callable[[], list[Row]]] = {
        "short": lambda: ratio_rows(model, 128, 64, options.repetitions),
        "long": lambda: ratio_rows(model, 512, 128, options.repetitions),
        "first call": lambda: [first_call_row()],
        "batch": lambda: [batch_row(model, 16, 128, 64, options.repetitions)],
        "steps": lambda: steps_rows(model, 32, 400, 16, options.repetitions),
        "stream": lambda: stream_rows(model, 128, 64, options.repetitions),
        "long text": lambda: [long_text_row(model, 100, 2000)],
        "growth": lambda: growth_rows(model),
        "loop": lambda: [loop_row(512, 128)],
        "memory": lambda: [memory_row(4096, 64)],
        "offload": lambda: [offload_row(128, 64)],
        "lengths": lambda: long_rows(),
        "dataset": lambda: [_row(*row) for row in dataset_rows()],
        "sizes": lambda: [_row(*file_sizes_row())],
        "reports": lambda: [_row(*row) for row in report_rows()],
        "app": app_rows,
        "import": lambda: [import_row()],
    }
    rows = [row for name in options.parts or parts for row in parts[name]()]
    if options.parts:
        return  # a look at some figures; the results are of one run
    header = _HEADER.format(
        date=datetime.date.today(),
        version=gradellm_hf.__version__,
        torch=torch.__version__,
        transformers=transformers.__version__,
        python=platform.python_version(),
        machine=machine(),
        threads=torch.get_num_threads(),
        repetitions=options.repetitions,
    )
    table = "\n".join(f"| {what} | {measured} | {target} |" for what, measured, target in rows)
    write_atomically(options.output, (header + table + "\n" + _FOOTER.format(loop_steps=_LOOP_STEPS)).encode())
    print(f"\nWritten to {options.output}")


Row = tuple[str, str, str]
_LOOP_STEPS = 6
_CONFIGS = {"all layers": GradELLMConfig(), "last layer": GradELLMConfig(layers=1)}
_RATIO_TARGETS = {(128, "all layers"): "<= 1.12", (128, "last layer"): "<= 1.07", (512, "all layers"): "<= 1.12"}


def ratio_rows(model: Any, prompt_length: int, num_steps: int, repetitions: int) -> list[Row]:
    generate, explainers = _runs(model, prompt_length, num_steps)
    ratios: dict[str, list[float]] = {name: [] for name in explainers}
    for _ in range(repetitions):
        for name, explain in explainers.items():
            seconds = timed(generate)
            ratios[name].append(timed(explain) / seconds)
    return [
        _row(
            f"`explain_generate / generate`, P={prompt_length}, N={num_steps}, {name}",
            median_and_range(values),
            _RATIO_TARGETS.get((prompt_length, name), ""),
        )
        for name, values in ratios.items()
    ]


def first_call_row() -> Row:
    first, *later = _measured("first_call")
    ratio = first / statistics.median(later)
    return _row(
        "the first `explain_generate` of a process / later ones, P=128, N=64, all layers", f"{ratio:.2f} ({first:.1f} s)", ""
    )


def batch_row(model: Any, rows: int, prompt_length: int, num_steps: int, repetitions: int) -> Row:
    prompt = _prompt(prompt_length, rows)
    options = {"attention_mask": torch.ones_like(prompt), **_length(num_steps)}
    explain_generate(model, prompt, **{**options, **_length(4)})
    ratios = []
    for _ in range(repetitions):
        seconds = timed(lambda: model.generate(prompt, **options))
        ratios.append(timed(lambda: explain_generate(model, prompt, **options)) / seconds)
    what = f"`explain_generate / generate`, {rows} rows, P={prompt_length}, N={num_steps}, all layers"
    return _row(what, median_and_range(ratios), "")


def steps_rows(model: Any, prompt_length: int, num_steps: int, last: int, repetitions: int) -> list[Row]:
    """What the last steps of a long text cost, and what all of them: beside `generate`, and where the text is given."""
    prompt, length = _prompt(prompt_length), _length(num_steps)
    text, some = _prompt(prompt_length + num_steps), slice(-last, None)
    explain_sequences(model, text, prompt_length, steps=some)
    rows = []
    runs: dict[str, Callable[[Any], Any]] = {
        "explain_generate / generate": lambda steps: explain_generate(model, prompt, steps=steps, **length),
        "explain_sequences / generate": lambda steps: explain_sequences(model, text, prompt_length, steps=steps),
    }
    seconds = {name: {"all": [], "some": []} for name in runs}
    for _ in range(repetitions):
        generated = timed(lambda: model.generate(prompt, **length))
        for name, run in runs.items():
            seconds[name]["some"].append(timed(lambda run=run: run(some)) / generated)
            seconds[name]["all"].append(timed(lambda run=run: run(None)) / generated)
    for name, ratios in seconds.items():
        what = f"`{name}`, P={prompt_length}, N={num_steps}, `steps=slice(-{last}, None)`"
        measured = f"{median_and_range(ratios['some'])}; all steps: {median_and_range(ratios['all'])}"
        rows.append(_row(what, measured, "what the last steps cost" if name.startswith("explain_g") else ""))
    return rows


def stream_rows(model: Any, prompt_length: int, num_steps: int, repetitions: int) -> list[Row]:
    """`explain_stream` over `generate`, by the number of tokens that are explained together."""
    prompt, length = _prompt(prompt_length), _length(num_steps)
    ratios: dict[int, list[float]] = {1: [], 4: [], 16: [], 32: []}
    for every in ratios:
        list(explain_stream(model, prompt, every=every, **length))
    for _ in range(repetitions):
        for every, values in ratios.items():
            seconds = timed(lambda: model.generate(prompt, **length))
            values.append(timed(lambda e=every: list(explain_stream(model, prompt, every=e, **length))) / seconds)
    return [
        _row(
            f"`explain_stream(every={every}) / generate`, P={prompt_length}, N={num_steps}, all layers",
            median_and_range(values),
            "<= 1.25" if every == 16 else "",
        )
        for every, values in ratios.items()
    ]


def long_text_row(model: Any, prompt_length: int, num_steps: int) -> Row:
    """A long text, in passes over it that only compute its logits."""
    token_ids = _prompt(prompt_length + num_steps)

    def forward() -> None:
        with torch.no_grad():
            model(token_ids)

    explain_sequences(model, token_ids[:, : prompt_length + 8], prompt_length)
    ratios = []
    for _ in range(3):
        seconds = timed(forward)
        ratios.append(timed(lambda: explain_sequences(model, token_ids, prompt_length)) / seconds)
    what = f"`explain_sequences` / a forward pass over the text, P={prompt_length}, N={num_steps}, all layers"
    return _row(what, median_and_range(ratios), "<= 3.3")


def growth_rows(model: Any) -> list[Row]:
    """The explanation alone, in ms per generated token, as N and P grow: `explain_sequences` less a pass over its prompt."""

    def milliseconds(prompt_length: int, num_steps: int) -> str:
        token_ids = _prompt(prompt_length + num_steps)

        def prefill() -> Any:
            with torch.no_grad():
                return model(token_ids[:, : prompt_length - 1], use_cache=True, logits_to_keep=1)

        def explain() -> Any:
            return explain_sequences(model, token_ids, prompt_length)

        explain()
        differences = [timed(explain) - timed(prefill) for _ in range(5)]
        return f"{1000 * statistics.median(differences) / num_steps:.1f}"

    by_steps = ", ".join(f"N={n}: {milliseconds(512, n)}" for n in (32, 64, 128, 256))
    by_prompt = ", ".join(f"P={p}: {milliseconds(p, 64)}" for p in (512, 1024, 2048, 4096))
    return [
        _row("explanation alone, ms per token, P=512", by_steps, "constant: linear in N"),
        _row("explanation alone, ms per token, N=64", by_prompt, "a constant plus a term linear in P"),
    ]


def loop_row(prompt_length: int, num_steps: int) -> Row:
    model, _ = load_smollm2(attn_implementation="eager")
    fast, _ = load_smollm2()
    token_ids = fast.generate(_prompt(prompt_length), **_length(num_steps))
    explain_sequences(fast, token_ids[:, : prompt_length + 2], prompt_length)
    ours = statistics.median(timed(lambda: explain_sequences(fast, token_ids, prompt_length)) for _ in range(3))
    positions = torch.linspace(prompt_length - 1, prompt_length + num_steps - 2, _LOOP_STEPS).long().tolist()
    loop = num_steps * statistics.mean(timed(lambda p=p: explain_step(model, token_ids, p)) for p in positions)
    heatmap = explain_sequences(fast, token_ids, prompt_length).attributions[0, -1, :-1]
    agreement = (heatmap - explain_step(model, token_ids, prompt_length + num_steps - 2)).abs().max() / heatmap.max()
    return _row(
        f"speed against the per-step loop, P={prompt_length}, N={num_steps}, all layers",
        f"{loop / ours:.0f} times ({loop:.0f} s against {ours:.2f} s; largest difference {agreement:.0e} of the maximum)",
        ">= 60 times",
    )


def memory_row(prompt_length: int, num_steps: int) -> Row:
    sizes = _measured("memory", prompt_length, num_steps)
    extra = sizes["explain_memory"] - sizes["generate_memory"]
    return _row(
        f"extra peak memory over `generate`, P={prompt_length}, N={num_steps}, all layers",
        f"{extra / 2**30:.2f} GiB (generate: {sizes['generate_memory'] / 2**30:.2f} GiB)",
        "<= 0.75 GiB",
    )


def offload_row(prompt_length: int, num_steps: int) -> Row:
    generate, explain, keeping = (
        _measured("offloading", what, prompt_length, num_steps) for what in ("generate", "explain", "explain-keeping")
    )
    return _row(
        f"peak memory with all weights on disk, P={prompt_length}, N={num_steps}, all layers",
        f"generate {generate['peak']:.0f} MiB, explain {explain['peak']:.0f} MiB (keeping the weights for the backward pass: "
        f"{keeping['peak']:.0f} MiB)",
        f"generate + one layer ({generate['layer']:.0f} MiB)",
    )


def long_rows(num_steps: int = 64) -> list[Row]:
    """Seconds and peak memory of `generate` and `explain_generate`, in one process per length."""
    rows = []
    for prompt_length in (512, 1024, 2048, 4096, 8192, 16384, 32768):
        sizes = _measured("memory", prompt_length, num_steps)
        generate, explain = (f"{sizes[f'{what}_seconds']:.1f} s" for what in ("generate", "explain"))
        memory, explain_memory = (f"{sizes[f'{what}_memory'] / 2**30:.2f} GiB" for what in ("generate", "explain"))
        rows.append(
            _row(
                f"P={prompt_length}, N={num_steps}, all layers",
                f"generate {generate}, {memory}; explain_generate {explain}, {explain_memory}; "
                f"ratio {sizes['explain_seconds'] / sizes['generate_seconds']:.3f}",
                "",
            )
        )
    return rows


def app_rows(messages: int = 50) -> list[Row]:
    """Memory of the app after so many messages, and the time until an answer's report."""
    found = _measured("app_chat", messages)

    def sizes(name: str) -> str:
        return ", ".join(f"{size:.0f}" for size in found[name]) + " MB"

    return [
        _row(
            "`gradellm app`, from the end of an answer of 64 tokens to its report",
            f"{found['seconds_after_64_tokens']:.2f} s",
            "",
        ),
        _row(f"its memory after 10 to {messages} messages, chats of five", sizes("resident_in_short_chats"), "flat"),
        _row(f"its memory after 10 to {messages} messages, one chat", sizes("resident_in_one_chat"), "flat"),
    ]


def _measured(module: str, *arguments: Any) -> Any:
    """What a benchmark prints, run in a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # so that memory that is freed goes back to the system
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1])
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def import_row() -> Row:
    code = "import time, torch, transformers; s = time.perf_counter(); import gradellm_hf; print(time.perf_counter() - s)"
    seconds = [float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(3)]
    return _row("`import gradellm_hf` over `import torch, transformers`", f"{statistics.median(seconds):.2f} s", "<= 0.3 s")


def _runs(model: Any, prompt_length: int, num_steps: int) -> tuple[Callable[[], Any], dict[str, Callable[[], Any]]]:
    prompt, length = _prompt(prompt_length), _length(num_steps)

    def explainer(config: GradELLMConfig) -> Callable[[], Any]:
        return lambda: explain_generate(model, prompt, explain_config=config, **length)

    explainers = {name: explainer(config) for name, config in _CONFIGS.items()}
    for run in explainers.values():
        run()
    return lambda: model.generate(prompt, **length), explainers


def _prompt(length: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(100, 40000, (rows, length), generator=torch.Generator().manual_seed(0))


def _length(num_steps: int) -> dict[str, Any]:
    return {"max_new_tokens": num_steps, "min_new_tokens": num_steps, "do_sample": False}


def _row(what: str, measured: str, target: str) -> Row:
    print(f"{what}: {measured}  [{target}]", flush=True)
    return what, measured, target


if __name__ == "__main__":
    main()
