"""`gradellm explain`."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .loading import add_model_arguments, load_model
from .results import add_result_arguments, write_results

if TYPE_CHECKING:
    from ..configuration import GradELLMConfig

_SAMPLING = ("temperature", "top_p", "top_k")
_EXAMPLES = """
examples:
  gradellm explain MODEL --prompt "The capital of Italy is"
  gradellm explain MODEL --chat --system "Be brief." --prompt-file question.txt --html answer.html
  gradellm explain MODEL --prompt "The capital of Italy is" --target " Rome" --layers 4 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    add_model_arguments(parser)
    group = parser.add_argument_group("prompt")
    prompt = group.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="what the model is given")
    prompt.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="a file with it (- is standard input); with --chat, a .json file is a list of messages",
    )
    group.add_argument("--chat", action="store_true", help="the prompt is a user's message, for the model's chat template")
    group.add_argument("--system", metavar="TEXT", help="a system message before it; implies --chat")
    group.add_argument("--target", metavar="TEXT", help="explain why the model would write this; nothing is generated")

    group = parser.add_argument_group("explanation")
    group.add_argument(
        "--preset",
        choices=("default", "paper", "loosened"),
        default="default",
        help="default; paper: the published implementation; loosened: cosines of queries and keys as weights",
    )
    group.add_argument(
        "--layers", type=_layers, metavar="LAYERS", help="all, a number of last layers, or indices with commas (0,5,-1)"
    )

    group = parser.add_argument_group("generation")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens to generate at most (default: 64)")
    group.add_argument("--do-sample", action="store_true", default=None, help="sample instead of taking the likeliest token")
    group.add_argument("--temperature", type=float, metavar="T", help="with --do-sample")
    group.add_argument("--top-p", type=float, metavar="P", help="with --do-sample")
    group.add_argument("--top-k", type=int, metavar="K", help="with --do-sample")
    group.add_argument("--seed", type=int, metavar="N", help="of the random numbers of --do-sample")
    group.add_argument("--num-beams", type=int, metavar="N", help="beam search")
    add_result_arguments(parser)


def run(options: argparse.Namespace) -> int:
    generate_kwargs = _generate_kwargs(options)
    prompt = _prompt(options)
    config = _config(options)
    model = load_model(options)
    if options.seed is not None:
        from transformers import set_seed

        set_seed(options.seed)
    explanation = model.explain(prompt, options.target, explain_config=config, **generate_kwargs)
    write_results(explanation, options)
    return 0


def _generate_kwargs(options: argparse.Namespace) -> dict[str, Any]:
    names = ("max_new_tokens", "do_sample", *_SAMPLING, "num_beams")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.target is not None:
        if given:
            raise _wrong(f"nothing is generated with --target: leave out {_as_options(given)}")
        return {}
    if "do_sample" not in given and (needless := [name for name in _SAMPLING if name in given]):
        raise _wrong(f"{_as_options(needless)} needs --do-sample")
    return {"max_new_tokens": 64, "do_sample": False, **given}


def _prompt(options: argparse.Namespace) -> Any:
    file = options.prompt_file
    text = options.prompt
    if file is not None:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    if not options.chat and options.system is None:
        return text
    messages = [{"role": "user", "content": text}]
    if file is not None and file.endswith(".json"):
        try:
            messages = json.loads(text)
        except json.JSONDecodeError as error:
            raise _wrong(f"--chat with {file}: not a JSON list of messages: {error}") from error
        _check_messages(file, messages)
    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    return [*system, *messages]


def _check_messages(file: str, messages: Any) -> None:
    from ..chats import check_chat
    from ..errors import InvalidInputError

    try:
        check_chat(messages)
    except InvalidInputError as error:
        raise _wrong(f"--chat with {file}: {error}") from error


def _config(options: argparse.Namespace) -> "GradELLMConfig":
    from ..configuration import GradELLMConfig
    from ..errors import InvalidInputError

    layers = {} if options.layers is None else {"layers": options.layers}
    try:
        if options.preset == "paper":
            return GradELLMConfig.paper(**layers)
        return GradELLMConfig(spatial="loosened" if options.preset == "loosened" else "attention", **layers)
    except InvalidInputError as error:
        raise _wrong(str(error)) from error


def _layers(text: str) -> str | int | list[int]:
    if text == "all":
        return text
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not all, a number or numbers with commas") from None
    return numbers if "," in text else numbers[0]


def _wrong(message: str) -> argparse.ArgumentError:
    return argparse.ArgumentError(None, message)


def _as_options(names: Any) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)
