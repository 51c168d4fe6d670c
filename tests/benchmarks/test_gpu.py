"""`python -m benchmarks.gpu` as it is typed, in tiny shapes on a CPU. `on_several_devices.py` has simulated GPUs."""

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu import PARTS
from benchmarks.gpu.packing import GROUP, awq_tensors, gptq_tensors, quantize
from benchmarks.gpu.profiled import Traffic
from gradellm_hf.architecture.tolerances import HEATMAPS
from tests.support import ROOT

NOT_THERE = "cuda:99"


def run(out, *arguments):
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), "--scale", "tiny", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


def results(out):
    return {file.stem: json.loads(file.read_text()) for file in out.glob("*.json")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where everything was run on the CPU, after two parts had failed on a device that is not there."""
    out = tmp_path_factory.mktemp("gpu") / "results"
    failed = run(out, "--device", NOT_THERE, "--parts", "b,long_text")
    assert failed.returncode == 1, failed.stderr[-3000:]
    (out / "failed").mkdir()
    for file in (*out.glob("*.json"), out / "RESULTS.md"):
        (out / "failed" / file.name).write_bytes(file.read_bytes())
    done = run(out, "--device", "cpu")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


@pytest.mark.slow
def test_a_part_that_fails_is_recorded_with_its_error_and_the_next_one_is_run(folder):
    failed = results(folder / "failed")
    assert set(failed) == {"ratio", "long_text"}
    assert [result["status"] for result in failed.values()] == ["failed", "failed"]
    assert all("CUDA" in result["error"] for result in failed.values())
    assert (folder / "failed" / "RESULTS.md").read_text().count("**It failed: ") == 2


@pytest.mark.slow
def test_every_part_leaves_its_figures_and_its_table(folder):
    found = results(folder)
    assert set(found) == set(PARTS)
    assert {part: result["status"] for part, result in found.items()} == dict.fromkeys(PARTS, "done")
    rows = [row for result in found.values() for row in result["rows"]]
    assert [row for row in rows if row["outcome"] == "failed"] == []
    assert all(result["environment"]["torch"] == torch.__version__ for result in found.values())
    table = (folder / "RESULTS.md").read_text()
    assert table.count("| what | measured | target |") == len(PARTS)
    assert all(row["what"] in table for row in rows)
    assert "It failed" not in table
    assert list(folder.glob(".*")) == []  # nothing half written


@pytest.mark.slow
def test_the_figures_are_plausible(folder):
    found = {part: {row["what"]: row for row in result["rows"]} for part, result in results(folder).items()}
    assert [what for what, row in found["exactness"].items() if row["outcome"] == "missed"] == []
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        chosen = found["exactness"][f"{name}, given text, kernels as torch chooses them"]["values"]
        assert all(0 < chosen[f"{engine} from the reference"] < HEATMAPS.of(dtype) for engine in ("replay", "stepwise"))
        assert found["exactness"][f"{name}, static cache, `torch.compile`"]["values"]["compiled"]
        assert found["exactness"][f"{name}, layers on cpu, disk"]["values"]["same_text"]
    assert all(0.5 < row["values"]["ratio"] < 20 for row in found["ratio"].values())
    (long_text,) = found["long_text"].values()
    assert long_text["values"]["rows"] == 100
    assert long_text["values"]["seconds"] > 0.5 * long_text["values"]["read_seconds"]
    assert max(row["values"]["layers"] for row in found["biggest"].values()) == 7
    for row in found["quantized"].values():
        assert row["outcome"] in ("met", "not run")
    kinds = found["profiled"]["P=120, N=12, kinds of kernels"]["values"]
    assert kinds["matrix products"] > 0
    fused = found["profiled"]["P=120, N=12, a fused kernel"]["values"]
    assert fused["bytes"] > 10 * fused["heatmaps"] > 0


@pytest.mark.slow
def test_parts_that_are_done_are_run_again_only_when_asked(folder):
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.json")}
    again = run(folder, "--device", NOT_THERE)  # which would fail
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("done before") == len(PARTS)
    assert {file.name: file.stat().st_mtime_ns for file in folder.glob("*.json")} == before


@pytest.mark.slow
def test_a_part_that_takes_too_long_is_ended_and_recorded(tmp_path):
    done = run(tmp_path, "--device", "cpu", "--parts", "exactness", "--limit", "0.5")
    assert done.returncode == 1, done.stderr[-3000:]
    result = results(tmp_path)["exactness"]
    assert (result["status"], result["error"]) == ("failed", "it took longer than 0.5 s")
    assert {entry.name for entry in tmp_path.iterdir()} == {"exactness.json", "RESULTS.md"}


@pytest.mark.slow
def test_full_shapes_without_a_device_and_results_of_another_scale_are_refused(folder, tmp_path):
    full = run(tmp_path, "--scale", "full", "--device", "cpu")
    assert full.returncode == 2
    assert "no CUDA device" in full.stderr
    assert list(tmp_path.iterdir()) == []
    other = run(folder, "--scale", "full", "--device", NOT_THERE)
    assert other.returncode == 2
    assert "results of another scale" in other.stderr


def test_packed_weights_are_unpacked_to_those_that_they_were():
    """By the formats' own rules, written out word by word."""
    weight = torch.randn(16, 2 * GROUP, generator=torch.Generator().manual_seed(0))
    quantized = quantize(weight)
    dequantized = quantized.dequantized().float()
    step = quantized.scales.float().repeat_interleave(GROUP, 0).T
    assert ((dequantized - weight).abs() <= 1.01 * step).all()
    for method, tensors in {"gptq": gptq_tensors(quantized), "awq": awq_tensors(quantized)}.items():
        for i, o in ((0, 0), (1, 3), (7, 9), (130, 15), (255, 6)):
            if method == "gptq":
                q = (tensors["qweight"][i // 8, o].item() >> 4 * (i % 8)) & 15
                zero = ((tensors["qzeros"][i // GROUP, o // 8].item() >> 4 * (o % 8)) & 15) + 1
                assert tensors["g_idx"][i] == i // GROUP
            else:
                shift = 4 * [0, 4, 1, 5, 2, 6, 3, 7][o % 8]
                q = (tensors["qweight"][i, o // 8].item() >> shift) & 15
                zero = (tensors["qzeros"][i // GROUP, o // 8].item() >> shift) & 15
            scale = tensors["scales"][i // GROUP, o].float().item()
            assert scale * (q - zero) == pytest.approx(dequantized[o, i].item(), rel=1e-3)


def test_what_operations_over_keys_move_is_counted_and_nothing_else():
    heads, queries, keys, dim = 2, 5, 37, 16
    query, key, other = torch.ones(heads, queries, dim), torch.ones(heads, keys, dim), torch.ones(heads, queries, keys)
    with Traffic(range(37, 40)) as traffic:
        scores = query @ key.mT  # writes the scores
        _ = (scores * other)[:, :1].transpose(1, 2)  # reads two, writes one; the rest are views
        _ = scores @ key  # reads the scores
        _ = query + 1  # has nothing to do with keys
    size = heads * queries * keys * 4
    assert (traffic.passes, traffic.element_wise, traffic.of_products) == (1, 3 * size, 2 * size)
    assert traffic.operations == 2 * 2 * heads * queries * keys * dim
