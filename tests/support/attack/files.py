"""Damaged files of every kind that the package reads, and how what is read of them is judged.

A damaged file is right if it is refused with a clear error that names it (or the line of it), and if what is read equals what
the undamaged file gives: then nothing was lost. Anything else that is read is judged by this question: **could it be told?** A
file without a checksum in which one score became another is a good file of other scores: no reader can tell. So a file that is
read differently is right only if

- its kind has no checksum (single explanations, Inseq's files, records, prompts; folders of `explain_dataset` have one, and
  there any difference is silent), and
- what is read passes `_is_sound`, which knows what an explanation is and shares no code with the package: types, shapes, finite
  scores, shares between 0 and 1; and
- nothing was lost or invented on the way: written once more, it is the damaged file again, field by field. A reader that fills
  in a missing field, makes numbers of other numbers or leaves out what it does not like does not pass.

So a score that is another score is right, and a score that was NaN and is 0 now is silent.
"""

import dataclasses
import functools
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradellm_hf import (
    ExplainGenerateOutput,
    Explanation,
    GradELLMConfig,
    HeadWeights,
    explain_dataset,
    load_dataset_explanations,
)
from gradellm_hf.evaluation import evaluate, load_evaluation, summarise
from gradellm_hf.interchange import load_explanations, load_inseq, save_inseq

from ..damage import damaged, split_safetensors
from .outcomes import Attack, Judge, Outcome, Verdict, refused
from .world import World

_Loaded = Any
_CONFIG = GradELLMConfig(layers=[1, 3], output_layer_attributions=True)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        path: A good file of it. If it is one of a folder's files, the folder `folder` is read.
        read: What the package makes of a file or folder, as values that can be compared.
        written: From what was read and the path of the damaged file, whether that is what would be written. None: it has a
            checksum.
        suffix: As `damage.damages` knows it.
        clear: Further words of a clear error, beside the file's name.
    """

    path: Path
    read: Callable[[Path], _Loaded]
    written: Callable[[_Loaded, Path], bool] | None
    suffix: str
    folder: Path | None = None
    clear: tuple[str, ...] = ()


def attacks(world: World, per_kind: int, seed: int) -> Iterator[Attack]:
    for name, kind in _kinds(world).items():
        content = kind.path.read_bytes()
        good = kind.read(kind.folder or kind.path)
        number = per_kind if name != "prompts" else max(1, per_kind // 5)  # each is a job of its own
        for damage, bad in damaged(content, kind.suffix, seed, number):
            call = functools.partial(_read_damaged, kind, bad, world.folder)
            yield Attack(f"file: {name}", damage, call, _judge(kind, good))
    yield from _claims(world)


def _kinds(world: World) -> dict[str, Kind]:
    folder, good = world.folder / "files", world.explanation
    folder.mkdir()
    e = dataclasses.replace(
        good,
        target_scores=torch.tensor([1.5, -2.0, 3.25]),
        layer_names=["a", "b"],
        explain_config=_CONFIG,
        token_ids=list(range(3, 11)),
    )
    paths = {
        name: folder / name for name in ("explanation.safetensors", "output.safetensors", "inseq.json", "configuration.json")
    }
    weights = folder / "head_weights.safetensors"
    HeadWeights(torch.arange(30.0).view(5, 6), "magnitude", "llama", report={"minutes": 1.5}).save(weights)
    e.save(paths["explanation.safetensors"])
    known = dataclasses.replace(world.out, sequences=world.out.sequences.clamp(max=len(world.tokenizer) - 1))  # all have a text
    known.save(paths["output.safetensors"], world.tokenizer)
    small = {name: folder / f"small {name}" for name in ("explanation.safetensors", "output.safetensors")}
    e.save(small["explanation.safetensors"], keep="top")
    known.save(small["output.safetensors"], world.tokenizer, keep=2)
    save_inseq(e, paths["inseq.json"])
    paths["configuration.json"].write_text(_CONFIG.to_json())
    prompts = [{"id": "a", "prompt": "Rome is"}, {"id": "b", "prompt": ""}, {"id": "c", "prompt": "Rome was old"}]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in prompts))
    options = {"max_new_tokens": 2, "do_sample": False}
    explain_dataset(world.wrapped, folder / "prompts.jsonl", folder / "job", explain_config=_CONFIG, **options)
    rated = [{**prompts[0], "task": "x", "rationale": [[0, 4]]}, prompts[2], prompts[1]]
    evaluate(
        world.wrapped, rated, folder / "evaluation", methods=["random", "saliency"], metrics=["soft_ns", "pi_soft_ns", "auc"]
    )
    job, evaluation = folder / "job", folder / "evaluation"
    shard, records = next(job.glob("shard-*")), next(evaluation.glob("records-*"))
    return {
        "explanation": Kind(paths["explanation.safetensors"], _read_explanation, _same_tensors_again, ".safetensors"),
        "output": Kind(paths["output.safetensors"], _read_output, _same_tensors_again, ".safetensors"),
        "small explanation": Kind(small["explanation.safetensors"], _read_explanation, _same_tensors_again, ".safetensors"),
        "small output": Kind(small["output.safetensors"], _read_output, _same_tensors_again, ".safetensors"),
        "shard": Kind(shard, _read_dataset, None, ".safetensors", job),
        "dataset manifest": Kind(job / "manifest.json", _read_dataset, None, ".json", job),
        "evaluation manifest": Kind(evaluation / "manifest.json", _read_evaluation, None, ".json", evaluation),
        "records": Kind(records, _read_evaluation, _same_records_again, ".jsonl", evaluation, ("record",)),
        "inseq": Kind(paths["inseq.json"], load_inseq, _same_inseq_again, ".json"),
        "configuration": Kind(paths["configuration.json"], _read_config, _same_options_again, ".json", None, tuple(_OPTIONS)),
        "head weights": Kind(weights, HeadWeights.load, None, ".safetensors"),
        "prompts": Kind(
            folder / "prompts.jsonl",
            functools.partial(_explain_prompts, world),
            _same_prompts_again,
            ".jsonl",
            None,
            ("record", "prompt"),
        ),
    }


def _read_damaged(kind: Kind, content: bytes, folder: Path) -> tuple[_Loaded, Path]:
    """What is read of a copy with this content, and where that lies."""
    place = folder / "damaged"
    shutil.rmtree(place, ignore_errors=True)
    if kind.folder is None:
        place.mkdir()
        path = read = place / kind.path.name
    else:
        shutil.copytree(kind.folder, place)
        path, read = place / kind.path.name, place
    path.write_bytes(content)
    return kind.read(read), path


def _judge(kind: Kind, good: _Loaded) -> Judge:
    clear = refused(kind.path.name, "damaged", *kind.clear)

    def judge(result: Any, error: BaseException | None) -> Verdict:
        if error is not None:
            return clear(None, error)
        found, path = result
        if _equal(found, good):
            return Outcome.RIGHT, ""
        if kind.written is None:
            return Outcome.SILENT, "other content, though there is a checksum"
        if not _is_sound(found):
            return Outcome.SILENT, f"read as what cannot be: {found!r:.120}"
        if not kind.written(found, path):
            return Outcome.SILENT, f"read as what is not in the file: {found!r:.120}"
        return Outcome.RIGHT, ""

    return judge


def _read_explanation(path: Path) -> list[Explanation]:
    (found,) = load_explanations(path)
    assert _equal(found, Explanation.load(path))
    return [found]


def _read_output(path: Path) -> ExplainGenerateOutput:
    out = ExplainGenerateOutput.load(path)
    load_explanations(path)
    return out


def _read_dataset(folder: Path) -> Any:
    found = load_dataset_explanations(folder)
    return [list(found), found.ids, found.errors, found.manifest["num_prompts"], found.manifest["explain_config"]]


def _read_evaluation(folder: Path) -> Any:
    found = load_evaluation(folder)
    if found.done():
        summarise(found).to_markdown(found.tasks[0])
    values = {metric: found.values(metric) for metric in found.metrics}
    return [found.records, values, found.methods, found.metrics, found.settings, found.num_prompts, found.errors]


def _read_config(path: Path) -> GradELLMConfig:
    return GradELLMConfig.from_json(path.read_text(encoding="utf-8", errors="replace"))


def _explain_prompts(world: World, path: Path) -> Any:
    """Texts and errors of a job over prompts; an error of another kind than the package's is raised."""
    folder = path.parent / "explained"
    found = explain_dataset(world.wrapped, path, folder, max_new_tokens=1, do_sample=False)
    for error in found.errors.values():
        if not error.startswith("InvalidInputError: "):
            raise RuntimeError(error)
    return [[e.text if e else None for e in found], found.ids, found.errors]


def _same_tensors_again(found: Any, path: Path) -> bool:
    """Whether saving once more gives the same tensors and metadata, but for what a later version may have added."""
    (again := path.with_name("again")).unlink(missing_ok=True)
    for each in found if isinstance(found, list) else [found]:
        each.save(again)
    (header, data), (new_header, new_data) = (split_safetensors(file.read_bytes()) for file in (path, again))
    metadata, new_metadata = (x.pop("__metadata__", {}) for x in (header, new_header))
    if {name: json.loads(value) for name, value in new_metadata.items() if name != "checksum"} != {
        name: json.loads(value) for name, value in metadata.items() if name in new_metadata and name != "checksum"
    }:
        return False
    return all(
        name in header and _tensor(entry, new_data) == _tensor(header[name], data) for name, entry in new_header.items()
    ) and not any(name in _TENSORS for name in header.keys() - new_header.keys())


_TENSORS = (
    "attributions",
    "token_probabilities",
    "target_scores",
    "layer_attributions",
    "sequences",
    "step_mask",
    "prompt_mask",
)
_OPTIONS = (*_CONFIG.to_dict(), "GradELLMConfig", "JSON")


def _tensor(entry: dict[str, Any], data: bytes) -> Any:
    start, end = entry["data_offsets"]
    return entry["dtype"], entry["shape"], data[start:end]


def _same_records_again(found: Any, path: Path) -> bool:
    """Whether every line is a record that was read. What follows the last line break is what a process was writing when it
    was stopped, and belongs to no one: `evaluation/records.py` says so, and the job does that prompt once more."""
    lines = path.read_bytes().split(b"\n")[:-1]
    parsed = [{name: x for name, x in json.loads(line).items() if name != "checksum"} for line in lines]
    return _equal(list(found[0].values()), sorted(parsed, key=lambda record: record["index"]))


def _same_inseq_again(found: Any, path: Path) -> bool:
    save_inseq(found, again := path.with_name("again"))
    files = [json.loads(file.read_text())["attributes"] for file in (path, again)]
    sequences = [[sequence["attributes"] for sequence in file["sequence_attributions"]] for file in files]
    names = ("target", "target_attributions", "step_scores", "attr_pos_start", "attr_pos_end")
    return all(_equal(a[name], b[name]) for a, b in zip(*sequences, strict=True) for name in names)


def _same_options_again(found: GradELLMConfig, path: Path) -> bool:
    written = json.loads(path.read_text())
    values = found.to_dict()
    return all(type(values[name]) is type(value) and values[name] == value for name, value in written.items() if name in values)


def _same_prompts_again(found: Any, path: Path) -> bool:
    """Whether each text begins with what its line holds, and each line without a text is one that holds none.

    A line that is no JSON is a prompt that failed, with an error that names the line; the job does not end there.
    """
    texts, ids, errors = found
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    for number, (text, record_id, line) in enumerate(zip(texts, ids, lines, strict=True)):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if text is None and record_id is None and f"Record {number} of {str(path)!r} is not JSON" in errors[number]:
                continue
            return False
        record = record if isinstance(record, dict) else {"prompt": record}
        prompt = next((record[name] for name in ("prompt", "messages", "chat") if record.get(name) is not None), None)
        if not _equal(record.get("id"), record_id) or (
            text is not None and isinstance(prompt, str) and not text.startswith(prompt)
        ):
            return False
        if text is None and isinstance(prompt, str) and prompt and not any("\ud800" <= c <= "\udfff" for c in prompt):
            return False
    return True


def _is_sound(value: Any) -> bool:
    """Whether it is what it says: see the module."""
    if isinstance(value, list):
        return all(map(_is_sound, value))
    if isinstance(value, Explanation):
        return _is_sound_explanation(value)
    if isinstance(value, ExplainGenerateOutput):
        return _is_sound_output(value)
    if isinstance(value, dict):  # records, by their index
        return all(map(_is_sound_record, value.values())) if all(isinstance(x, dict) for x in value.values()) else True
    return True


def _is_sound_explanation(e: Explanation) -> bool:
    length, steps = len(e.tokens), len(e.tokens) - e.prompt_length
    texts = all(type(token) is str for token in e.tokens) and "".join(e.tokens) == e.text
    numbers = type(e.prompt_length) is int and 0 <= e.prompt_length <= length
    ids = e.token_ids is None or (len(e.token_ids) == length and all(type(i) is int and i >= 0 for i in e.token_ids))
    flags = len(e.special) == length and all(type(flag) is bool for flag in e.special)
    scores = (
        e.attributions.shape == (steps, length)
        and (e.target_scores is None or e.target_scores.shape == (steps,))
        and (e.layer_attributions is None or e.layer_attributions.shape[1:] == (steps, length))
    )
    finite = all(x is None or bool(x.isfinite().all()) for x in (e.attributions, e.target_scores, e.layer_attributions))
    layers = e.layers is None or (
        all(type(layer) is int and layer >= 0 for layer in e.layers)
        and (e.layer_attributions is None or len(e.layers) == len(e.layer_attributions))
        and (e.layer_names is None or len(e.layers) == len(e.layer_names))
    )
    names = all(type(name) is str for name in e.layer_names or []) and type(e.model_name) in (str, type(None))
    level = e.level in ("token", "word", "sentence", "span")
    return (
        texts
        and numbers
        and ids
        and flags
        and scores
        and finite
        and layers
        and names
        and level
        and _are_shares(e.token_probabilities)
    )


def _is_sound_output(out: ExplainGenerateOutput) -> bool:
    rows, steps, length = out.attributions.shape
    shapes = {
        "sequences": (rows, length),
        "step_mask": (rows, steps),
        "target_scores": (rows, steps),
        "token_probabilities": (rows, steps),
        "prompt_mask": (rows, length - steps),
    }
    tensors = all(out[name].shape == shape for name, shape in shapes.items())
    kinds = out.sequences.dtype == torch.int64 and out.step_mask.dtype == out.prompt_mask.dtype == torch.bool
    finite = bool(out.attributions.isfinite().all() and out.target_scores.isfinite().all())
    tokens = out.tokens is None or (
        len(out.tokens) == rows and all(len(row) == length and all(type(token) is str for token in row) for row in out.tokens)
    )
    layers = all(type(layer) is int and layer >= 0 for layer in out.layers) and len(out.layers) == len(out.layer_names)
    names = all(type(name) is str for name in out.layer_names) and type(out.model_name) in (str, type(None))
    ids = bool((out.sequences >= 0).all())
    prompt = type(out.prompt_length) is int and out.prompt_length == length - steps
    return (
        tensors and kinds and finite and tokens and layers and names and ids and prompt and _are_shares(out.token_probabilities)
    )


def _is_sound_record(record: dict[str, Any]) -> bool:
    if type(record.get("index")) is not int or record["index"] < 0 or type(record.get("task")) is not str:
        return "soft_ns" not in record.get("errors", {}) and "index" not in record  # other dicts: values by method
    if "error" in record:
        return type(record["error"]) is str
    counts = all(type(record[name]) is int and record[name] >= 1 for name in ("prompt_length", "num_tokens"))
    seconds = [*record["seconds"].values(), *([] if record["generate_seconds"] is None else [record["generate_seconds"]])]
    times = all(_is_number(x) and x >= 0 for x in seconds)
    values = all(
        x is None or _is_number(x) or (isinstance(x, list) and all(y is None or _is_number(y) for y in x))
        for by_method in record["values"].values()
        for x in by_method.values()
    )
    errors = all(type(text) is str for text in record["errors"].values())
    return counts and times and values and errors and type(record["continuation"]) is str


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_shares(x: Tensor) -> bool:
    return bool(((x >= 0) & (x <= 1 + 1e-3)).all())


def _equal(a: Any, b: Any) -> bool:
    """Equal in value and type, whatever it is; NaN is equal to NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if dataclasses.is_dataclass(a) and not isinstance(a, type):
        return all(_equal(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a))
    return bool(a == b) or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def _claims(world: World) -> Iterator[Attack]:
    """Small files that claim to be large; who believes them asks for more memory than there is."""
    from ..damage import joined_safetensors

    draw = random.Random(0)
    good = Kind(next((world.folder / "files" / "job").glob("shard-*")), _read_dataset, None, "", world.folder / "files" / "job")
    header, data = split_safetensors(good.path.read_bytes())
    names = [name for name in header if name.endswith("piece_lengths")]
    for length in (10**5, 10**6, 10**9):
        prompts = json.loads(header["__metadata__"]["prompts"])
        index = draw.randrange(len(prompts))
        prompts[index]["prompt_lengths"] = [length]
        metadata = {**header["__metadata__"], "prompts": json.dumps(prompts)}
        bad = joined_safetensors({**header, "__metadata__": metadata}, data)
        call = functools.partial(_read_damaged, good, bad, world.folder)
        yield Attack("file: shard", f"claims a prompt of {length} tokens", call, _judge(good, None))
    large = b"\x00" * (4 * 200_000)
    moved = {name: dict(entry) for name, entry in header.items() if name != "__metadata__"}
    for name in names[:1]:
        prefix = name.removesuffix("piece_lengths")
        for part in ("token_ids", "piece_lengths"):
            moved[prefix + part] |= {"shape": [200_000], "data_offsets": [len(data), len(data) + len(large)]}
            data += large
    bad = joined_safetensors({**moved, "__metadata__": header["__metadata__"]}, data)
    call = functools.partial(_read_damaged, good, bad, world.folder)
    yield Attack("file: shard", "claims 200,000 x 200,000 scores", call, _judge(good, None))
