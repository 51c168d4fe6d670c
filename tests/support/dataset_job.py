"""A small job over many prompts; as a script, one that is killed again and again."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gradellm_hf.cli import main
from tests.support.small_llama import small_llama
from tests.support.tiny_tokenizers import byte_level_bpe

VOCABULARY = 400  # more than the tokenizer has
WORDS = ("Rome", "Italy", "Paris", "capital", "the", "of", "is", "France")


def tiny_llama(**options: Any) -> Any:
    return small_llama(vocab_size=VOCABULARY, **options)


def texts(number: int) -> list[str]:
    """Prompts of 1 to 9 words, of which none is like another."""
    draw = random.Random(3)
    return [f"{i} " + " ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for i in range(number)]


def write_job(folder: Path, number: int) -> list[str]:
    """Writes the model, its tokenizer and prompts to a folder; returns the arguments of the command, but for the output."""
    tiny_llama().save_pretrained(folder / "model")
    byte_level_bpe().save_pretrained(folder / "model")
    lines = [json.dumps({"id": f"text {i}", "prompt": text}) for i, text in enumerate(texts(number))]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = ["--batch-size", "2", "--shard-size", "2", "--max-new-tokens", "8", "--generate", '{"do_sample": true}']
    return [str(folder / "model"), "--prompts", str(folder / "prompts.jsonl"), *options]


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a folder, hidden ones included; of shards, the header as values, since its order is left open."""
    return {path.name: _content(path.read_bytes(), path.suffix) for path in sorted(folder.iterdir())}


def _content(content: bytes, suffix: str) -> Any:
    if suffix != ".safetensors":
        return content
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), content[start:]


def start(arguments: list[str]) -> int:
    """The command in a forked process, which spares it the imports; returns its id."""
    process = os.fork()
    if process == 0:
        status = 70
        try:
            status = main(["dataset", *arguments])
        finally:
            os._exit(status)
    return process


def kill_again_and_again(folder: Path, number: int, kills: int) -> dict[str, Any]:
    """Runs a job undisturbed, and once more with so many kills at random points; says what happened.

    Each kill comes at a random time after none to two more shards have been written, however fast the machine is.
    """
    arguments = write_job(folder, number)
    undisturbed, output = folder / "undisturbed", folder / "killed"
    began = time.monotonic()
    first = os.waitpid(start([*arguments, "--output", str(undisturbed)]), 0)[1]
    a_shard = (time.monotonic() - began) / shards(undisturbed)
    draw, statuses, done = random.Random(), [], [0]
    while len(statuses) < kills:
        process = start([*arguments, "--output", str(output)])
        more = draw.randint(0, 2)
        while shards(output) < done[-1] + more:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, a_shard))
        os.kill(process, signal.SIGKILL)
        statuses.append(os.waitpid(process, 0)[1])
        done.append(shards(output))
    last = os.waitpid(start([*arguments, "--output", str(output)]), 0)[1]
    return {"undisturbed": first, "statuses": statuses, "done": done, "last": last}


def shards(folder: Path) -> int:
    return len(list(folder.glob("shard-*")))


if __name__ == "__main__":
    torch.set_num_threads(1)  # a process with other threads must not be forked
    print(json.dumps(kill_again_and_again(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
