"""Writes docs/architectures.md: every type of causal language model that Transformers registers, tried out.

`python -m scripts.architectures`, about two minutes on one core. With the newest Transformers it writes the whole page; with an
earlier one only the line of that version in the table of versions.
"""

import logging
import re
from collections import defaultdict
from pathlib import Path

import torch
import transformers
from transformers.utils import logging as transformers_logging

from gradellm_hf.checks.files import write_atomically
from tests.support.architectures.registered_types import decoder_only_types, registered_types, why_not_decoder_only
from tests.support.architectures.survey import (
    PROMPT,
    STEPS,
    Outcome,
    default_outcome,
    has_attention,
    is_causal,
    keys_are_tokens,
    why_not_run,
)
from tests.support.versions import IS_NEWEST

ROOT = Path(__file__).resolve().parent.parent

PAGE = """\
# Architectures

Every decoder-only text architecture that Transformers {version} registers for `AutoModelForCausalLM`, each tried out by
`python -m scripts.architectures`. A tiny model with random weights in float64, with one layer of each kind that the
architecture has, explains {steps} tokens after a prompt of {prompt}; all layers are compared with a reference that shares
no code with the package and runs one forward and one backward pass of the model's own eager attention per token.

**{exact} of the {softmax} types with softmax attention are explained exactly**, {replay} of them with the replay engine.

{versions}

- *Versions*: each line of the first table is from a run with that version. Types that it lacks, or whose tiny model it does not
  run, are not counted.
- *Engine*: what `explain_generate` uses without being told. A model of your own is checked once before it is replayed.
- *Error*: the largest difference from the reference, over the largest score.

| type | engine | error | note |
|---|---|---|---|
{rows}

## Not in the table

{excluded}
"""


ENGINES = (("replay", "stepwise"), ("replay",))
_VERSIONS_HEAD = """\
| Transformers | torch | types with softmax attention that run | explained exactly | of them by replay |
|---|---|---|---|---|"""
_VERSIONS = re.compile(re.escape(_VERSIONS_HEAD) + r"(?:\n\| \d.*)*")


def main() -> None:
    transformers_logging.set_verbosity(logging.CRITICAL)
    types = [model_type for model_type in decoder_only_types() if why_not_run(model_type) is None]
    outcomes = {model_type: default_outcome(model_type) for model_type in types}
    softmax = [outcomes[model_type] for model_type in types if is_causal(model_type) and has_attention(model_type)]
    exact, replayed = (sum(outcome.exact and outcome.engine in engines for outcome in softmax) for engines in ENGINES)
    path = ROOT / "docs" / "architectures.md"
    line = f"| {transformers.__version__} | {torch.__version__.partition('+')[0]} | {len(softmax)} | {exact} | {replayed} |"
    versions = version_table(path.read_text() if path.exists() else "", line)
    print(line)
    if not IS_NEWEST:
        write_atomically(path, _VERSIONS.sub(lambda _: versions, path.read_text()).encode())
        return
    page = PAGE.format(
        version=transformers.__version__,
        steps=STEPS,
        prompt=PROMPT,
        exact=exact,
        softmax=len(softmax),
        replay=replayed,
        versions=versions,
        rows="\n".join(row(model_type, outcome) for model_type, outcome in outcomes.items()),
        excluded=excluded_types(),
    )
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, page.encode())


def version_table(page: str, line: str) -> str:
    """The table of versions in a page, with a line put in, or in place of the one of its version."""
    found = _VERSIONS.search(page)
    lines = {row.split(" | ")[0]: row for row in [*(found[0].splitlines()[2:] if found else ()), line]}
    return "\n".join([_VERSIONS_HEAD, *(lines[version] for version in sorted(lines, key=numbers, reverse=True))])


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def row(model_type: str, outcome: Outcome) -> str:
    error = "" if outcome.error is None else f"{outcome.error:.0e}"
    return f"| `{model_type}` | {outcome.engine} | {error} | {reason(model_type, outcome)} |"


def reason(model_type: str, outcome: Outcome) -> str:
    """The cause in a message that is written for the user of one model."""
    if outcome.engine == "refused" and not is_causal(model_type):
        return "tokens see later tokens, as its default configuration makes it"
    if outcome.engine == "refused" and not has_attention(model_type):
        return "no softmax attention"
    if outcome.engine == "refused" and not keys_are_tokens(model_type):
        return "attends to keys that stand for several tokens"
    text = outcome.note.split("exact but slow: ")[-1].replace("\n", " ").replace("|", "\\|").strip()
    return text.removesuffix(".") if outcome.exact else text


def excluded_types() -> str:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for model_type in registered_types():
        if (why := why_not_decoder_only(model_type)) is not None:
            by_reason[why.split(" (")[0].split(" `")[0] if "composite" in why or "name" in why else why].append(model_type)
    titles = {
        "encoder-decoder": "Encoder-decoder models",
        "composite of models": "Composites of models; if the text part is registered as a type, it is in the table",
        "another name of": "Second names of a type in the table",
        "encoder, unless `is_decoder` is set": "Encoders, unless `is_decoder` is set",
    }
    return "\n".join(
        f"- {titles[why]}: {', '.join(f'`{model_type}`' for model_type in names)}." for why, names in sorted(by_reason.items())
    )


if __name__ == "__main__":
    main()
