"""`gradellm dataset`, or `python -m gradellm_hf.dataset`: many prompts, in a job that can be stopped and resumed."""

import argparse
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from .chat_options import add_chat_arguments, chat_options
from .checks import at_least, check_folder, check_prompts, seed, steps, wrong
from .model_options import add_head_weights_argument, add_model_arguments, load_model, use_own_device
from .result_options import add_size_arguments, print_errors

RENAMED = {"--model": "MODEL", "--input": "--prompts", "--config": "--explain-config"}
_EXAMPLES = """
PROMPTS is a .jsonl or .parquet file or a folder of Dataset.save_to_disk. A record has a `prompt`, or a chat in `messages`, and
possibly an `id`. Run the same command again to continue one that was stopped; in several processes with
`accelerate launch -m gradellm_hf.dataset ...` or `torchrun --nproc_per_node N -m gradellm_hf.dataset ...`.

example:
  gradellm dataset ./my-model --prompts prompts.jsonl --output explained --max-new-tokens 64
  gradellm dataset ./my-model --prompts prompts.jsonl --output small --keep top --scores float16
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.epilog = _EXAMPLES
    add_model_arguments(parser)
    group = parser.add_argument_group("what is explained")
    group.add_argument("--prompts", required=True, metavar="PROMPTS", help="the file or folder with the prompts")
    group.add_argument("--output", required=True, metavar="FOLDER", help="the folder to write to, or to continue")
    group.add_argument("--column", metavar="NAME", help="the field with the prompt (default: prompt, messages or chat)")
    json_object: dict[str, Any] = {"type": _json_object, "default": {}, "metavar": "JSON"}
    group.add_argument("--explain-config", help="options of GradELLMConfig, e.g. '{\"layers\": 4}'", **json_object)
    group.add_argument(
        "--steps",
        type=steps,
        metavar="STEPS",
        help="explain only these of the generated tokens of each prompt, as `gradellm explain --steps` does (--steps=-16:)",
    )
    add_head_weights_argument(group)
    add_chat_arguments(parser.add_argument_group("chats"))
    group = parser.add_argument_group("generation")
    group.add_argument("--max-new-tokens", type=at_least(1), metavar="N", help="tokens to write per prompt (default: 64)")
    group.add_argument("--generate", help="more options of generate, e.g. '{\"do_sample\": true}'", **json_object)
    group.add_argument("--seed", type=seed, default=0, metavar="N", help="of sampling (default: %(default)s)")
    group = parser.add_argument_group("the job")
    group.add_argument(
        "--batch-size", type=at_least(1), default=8, metavar="N", help="prompts explained together (default: %(default)s)"
    )
    group.add_argument(
        "--batch-tokens", type=at_least(1), metavar="N", help="at most so many prompt tokens together, padding included"
    )
    group.add_argument(
        "--shard-size", type=at_least(1), metavar="N", help="prompts per file (default: a 64th of them, at most 32 batches)"
    )
    add_size_arguments(group)


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code, 1 if a prompt could not be explained.

    Raises:
        As `explain_dataset`; and OSError if the model or the input cannot be read.
    """
    from ..configuration import GradELLMConfig
    from ..dataset import explain_dataset
    from ..dataset.explanations import FORMAT
    from ..jobs.manifest import read_manifest
    from ..jobs.processes import processes

    generate_kwargs = _generate_kwargs(options)
    config = GradELLMConfig.from_dict({**options.explain_config, **_head_weights(options)})
    folder = Path(options.output)
    check_folder("--output", folder)
    read_manifest(folder, FORMAT)  # of a job of this kind, if of any
    check_prompts(options.prompts, options.column)
    state = processes()
    use_own_device(options, state)
    explanations = explain_dataset(
        load_model(options, config),
        options.prompts,
        options.output,
        column=options.column,
        batch_size=options.batch_size,
        batch_tokens=options.batch_tokens,
        shard_size=options.shard_size,
        seed=options.seed,
        keep=options.keep,
        score_dtype=options.scores,
        **generate_kwargs,
    )
    if state.is_main_process:
        print_errors(explanations.errors, "explained", explanations.ids)
        done = len(explanations) - len(explanations.errors)
        print(f"{done} of {len(explanations)} prompts explained in {options.output}", file=sys.stderr)
        if explanations.errors:
            print("Run the same command again to retry those that failed for lack of memory, or the like.", file=sys.stderr)
    state.destroy_process_group()
    return int(bool(explanations.errors))


def _head_weights(options: argparse.Namespace) -> dict[str, str]:
    if options.head_weights is None:
        return {}
    if "head_weights" in options.explain_config:
        raise wrong("--head-weights and --explain-config both say `head_weights`; leave one out")
    return {"head_weights": options.head_weights}


def _generate_kwargs(options: argparse.Namespace) -> dict[str, Any]:
    from ..dataset import explain_dataset

    given: dict[str, Any] = options.generate
    own = chat_options(options, is_chat=True)  # a prompt that is none is recorded with an error
    if options.max_new_tokens is not None:
        own["max_new_tokens"] = options.max_new_tokens
    if options.steps is not None:
        own["steps"] = options.steps
    if not_for_generate := sorted(given.keys() & inspect.signature(explain_dataset).parameters.keys()):
        raise wrong(f"--generate takes options of `generate`; {not_for_generate} have options of their own")
    for name in sorted(given.keys() & own.keys()):
        raise wrong(f"--{name.replace('_', '-')} and --generate both say `{name}`; leave one out")
    return {"max_new_tokens": 64, **given, **own}


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"a JSON object is expected, got {text}")
    return value
