"""`python -m tests.support.architectures [types]`: the table of all types, or of some, as Markdown."""

import logging
import sys
import time

from transformers.utils import logging as transformers_logging

from .registered_types import decoder_only_types
from .survey import Outcome, explain, has_attention, is_causal, keys_are_tokens, truth_of


def cell(outcome: Outcome) -> str:
    return outcome.engine if outcome.error is None else f"{outcome.error:.0e}"


def attention_calls(model_type: str) -> int | str:
    if not is_causal(model_type):
        return "not causal"
    if not has_attention(model_type):
        return 0
    return truth_of(model_type).shape[1] if keys_are_tokens(model_type) else "keys are not tokens"


def main() -> None:
    transformers_logging.set_verbosity(logging.CRITICAL)
    print("| type | calls | default | replay | stepwise | s | note |\n|---|---|---|---|---|---|---|")
    for model_type in sys.argv[1:] or decoder_only_types():
        start = time.perf_counter()
        calls = attention_calls(model_type)
        outcomes = [explain(model_type), explain(model_type, engine="replay"), explain(model_type, engine="stepwise")]
        notes = " // ".join(dict.fromkeys(outcome.note for outcome in outcomes if outcome.note))
        default = f"{outcomes[0].engine} {cell(outcomes[0])}"
        cells = [model_type, calls, default, *map(cell, outcomes[1:]), f"{time.perf_counter() - start:.1f}"]
        print("|", " | ".join(map(str, [*cells, notes.replace("\n", " ").replace("|", "/")[:400]])), "|", flush=True)


if __name__ == "__main__":
    main()
