"""Damaged files: functions from the bytes of a good file to names and bytes of bad ones, the same for the same seed.

A name says what was done. Some results are still good files (a field that nobody needs was removed): what reads them must
give what the good file gives, or refuse with a clear error; never crash, never give other numbers without a word.
"""

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

Damaged = Iterator[tuple[str, bytes]]
_DEPTH = 100_000
_OTHER_VALUES: tuple[Any, ...] = (None, True, -1, 10**30, 0.5, float("nan"), "", "other", [], [[]], {}, {"a": 1})
_OTHER_TYPES = ("BOOL", "U8", "I32", "I64", "F16", "F32", "F64")
_WIDTHS = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "I64": 8, "F64": 8}
_FILLINGS = {"zeros": b"\x00", "ones": b"\x01", "all bits": b"\xff", "NaN of float32": b"\x00\x00\xc0\x7f"}


def truncations(content: bytes, seed: int = 0, number: int = 8) -> Damaged:
    """Cut off at the beginning, at the end and at random places."""
    draw = random.Random(seed)
    for size in dict.fromkeys([0, 1, 7, 8, 9, len(content) - 1, *(draw.randrange(len(content)) for _ in range(number))]):
        yield f"cut to {size} bytes", content[: max(size, 0)]
    yield "cut at the front", content[1:]


def bit_flips(content: bytes, seed: int = 0, number: int = 16) -> Damaged:
    """One bit is another."""
    draw = random.Random(seed)
    for _ in range(number):
        place, bit = draw.randrange(len(content)), draw.randrange(8)
        yield f"bit {bit} of byte {place}", content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def blocks(content: bytes, seed: int = 0, number: int = 8) -> Damaged:
    """Some bytes in a row are zero, random, missing or there twice, as disks and transfers leave them."""
    draw = random.Random(seed)
    for _ in range(number):
        start = draw.randrange(len(content))
        end = min(len(content), start + draw.choice((1, 4, 64, 512)))
        changes = {
            "zero": bytes(end - start),
            "random": draw.randbytes(end - start),
            "missing": b"",
            "there twice": content[start:end] * 2,
        }
        for name, block in changes.items():
            yield f"bytes {start} to {end} {name}", content[:start] + block + content[end:]
    yield "something follows", content + b"\x00" * 16


def json_values(content: bytes, seed: int = 0, number: int = 60) -> Damaged:
    """A JSON document in which a value is missing, is another, comes twice, or is nested deeply."""
    document, draw = json.loads(content), random.Random(seed)
    for name, change in _changes(document, draw, number):
        changed = _changed(document, change)
        if changed is not None:
            yield name, json.dumps(changed).encode()
    deep = "[" * _DEPTH + "]" * _DEPTH
    yield "nested deeply", deep.encode()
    if isinstance(document, dict):
        for key in sorted(document):
            yield f"{key} nested deeply", json.dumps({**document, key: "@deep@"}).replace('"@deep@"', deep).encode()


def json_lines(content: bytes, seed: int = 0, number: int = 60) -> Damaged:
    """A file of JSON lines in which one of them is damaged as `json_values` does it."""
    lines, draw = content.splitlines(), random.Random(seed)
    place = draw.randrange(len(lines))
    for name, line in json_values(lines[place], seed, number):
        yield f"line {place + 1}: {name}", b"\n".join([*lines[:place], line, *lines[place + 1 :]]) + b"\n"
    yield "a line twice", content + lines[0] + b"\n"


def safetensors_header(content: bytes, seed: int = 0, number: int = 60) -> Damaged:
    """A safetensors file whose metadata, each value of it a JSON document, are damaged as `json_values` does it."""
    header, data = split_safetensors(content)
    metadata = header.get("__metadata__", {})
    yield "no metadata", joined_safetensors({name: x for name, x in header.items() if name != "__metadata__"}, data)
    for key in sorted(metadata):
        rest = {name: value for name, value in metadata.items() if name != key}
        yield f"no {key}", joined_safetensors({**header, "__metadata__": rest}, data)
        yield f"{key} is no JSON", joined_safetensors({**header, "__metadata__": {**rest, key: "{"}}, data)
        try:
            documents = list(json_values(metadata[key].encode(), seed, max(4, number // len(metadata))))
        except ValueError:  # not ours
            continue
        for name, document in documents:
            yield f"{key}: {name}", joined_safetensors({**header, "__metadata__": {**rest, key: document.decode()}}, data)


def safetensors_tensors(content: bytes, seed: int = 0, number: int = 60) -> Damaged:
    """A safetensors file in which a tensor is missing, another's, of another shape or type, or filled with something else."""
    header, data = split_safetensors(content)
    names = sorted(name for name in header if name != "__metadata__")
    draw = random.Random(seed)
    for name in _some(names, draw, number):
        entry, rest = header[name], {key: x for key, x in header.items() if key != name}
        start, end = entry["data_offsets"]
        yield f"{name} as another name", joined_safetensors({**rest, name + "x": entry}, data)
        other = draw.choice(names)
        if other != name:
            yield f"{name} and {other} swapped", joined_safetensors({**header, name: header[other], other: entry}, data)
        size = end - start
        width = _WIDTHS.get(entry["dtype"], 1)
        shapes = [[size // width], [1, *entry["shape"]], entry["shape"][::-1], [*entry["shape"], 1]]
        for shape in shapes:
            yield f"{name} of shape {shape}", joined_safetensors({**rest, name: {**entry, "shape": shape}}, data)
        for dtype in _OTHER_TYPES:
            if dtype != entry["dtype"] and size % _WIDTHS[dtype] == 0:
                changed = {**entry, "dtype": dtype, "shape": [size // _WIDTHS[dtype]]}
                if _WIDTHS[dtype] == width:
                    changed["shape"] = entry["shape"]
                yield f"{name} of type {dtype}", joined_safetensors({**rest, name: changed}, data)
        for filling, block in _FILLINGS.items():
            filled = (block * (size // len(block) + 1))[:size]
            yield f"{name} filled with {filling}", joined_safetensors(header, data[:start] + filled + data[end:])
        yield f"{name} of shape [2**40, 0]", joined_safetensors(*_emptied(header, data, name, [2**40, 0]))
        yield f"{name} empty", joined_safetensors(*_emptied(header, data, name, [0]))
        yield f"{name} missing", joined_safetensors(*_emptied(header, data, name, None))


def damages(suffix: str) -> list[Callable[..., Damaged]]:
    """The functions above that suit files whose names end so: `.safetensors`, `.json`, `.jsonl` or another."""
    special: dict[str, list[Callable[..., Damaged]]] = {
        ".safetensors": [safetensors_header, safetensors_tensors],
        ".json": [json_values],
        ".jsonl": [json_lines],
    }
    return [truncations, bit_flips, blocks, *special.get(suffix, [])]


def damaged(content: bytes, suffix: str, seed: int = 0, number: int | None = None) -> Damaged:
    """All that `damages` knows for files of this kind, or a random choice of so many of them."""
    found = [(f"{damage.__name__}: {name}", bad) for damage in damages(suffix) for name, bad in damage(content, seed)]
    found = [(name, bad) for name, bad in found if bad != content]
    yield from found if number is None else _some(found, random.Random(seed), number)


def split_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its data."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined_safetensors(header: dict[str, Any], data: bytes) -> bytes:
    """The inverse of `split_safetensors`."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def _emptied(header: dict[str, Any], data: bytes, name: str, shape: list[int] | None) -> tuple[dict[str, Any], bytes]:
    """Without the data of a tensor, which has another shape (None: is not there)."""
    start, end = header[name]["data_offsets"]
    size = end - start
    moved = copy.deepcopy(header)
    for key, entry in moved.items():
        if key != "__metadata__" and entry["data_offsets"][0] >= end and key != name:
            entry["data_offsets"] = [offset - size for offset in entry["data_offsets"]]
    if shape is None:
        del moved[name]
    else:
        moved[name] |= {"shape": shape, "data_offsets": [start, start]}
    return moved, data[:start] + data[end:]


def _changes(document: Any, draw: random.Random, number: int) -> Iterator[tuple[str, tuple[tuple[Any, ...], str, Any]]]:
    """What can be changed: each key of the first two levels is removed and is something else, deeper ones at random."""
    paths = list(_paths(document))
    near, far = [path for path in paths if len(path) <= 2], [path for path in paths if len(path) > 2]
    for path in [*_some(near, draw, number), *_some(far, draw, number)]:
        name = ".".join(map(str, path)) or "all"
        if path:
            yield f"{name} removed", (path, "remove", None)
            yield f"{name} twice", (path, "double", None)
        value = draw.choice(_OTHER_VALUES)
        yield f"{name} is {value!r}", (path, "set", value)
    yield "an unknown field", ((), "add", None)


def _paths(document: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield prefix
    children = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, child in children:
        yield from _paths(child, (*prefix, key))


def _changed(document: Any, change: tuple[tuple[Any, ...], str, Any]) -> Any:
    path, kind, value = change
    if kind == "add":
        return {**document, "unknown": [1, {"a": None}]} if isinstance(document, dict) else None
    if not path:
        return value
    changed = copy.deepcopy(document)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    if kind == "remove":
        del parent[path[-1]]
    elif kind == "set":
        parent[path[-1]] = value
    elif isinstance(parent, list):
        parent.insert(path[-1], parent[path[-1]])
    else:
        parent[f"{path[-1]}_"] = parent[path[-1]]
    return changed


def _some(values: list[Any], draw: random.Random, number: int) -> list[Any]:
    return values if len(values) <= number else draw.sample(values, number)
