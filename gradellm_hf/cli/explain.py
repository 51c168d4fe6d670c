"""`gradellm explain`."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .chat_options import add_chat_arguments, chat_options
from .checks import at_least, between, check_text, seed, steps, wrong
from .model_options import add_head_weights_argument, add_model_arguments, load_model
from .result_options import add_result_arguments, check_results, write_results

if TYPE_CHECKING:
    from ..configuration import GradELLMConfig

_SAMPLING = ("temperature", "top_p", "top_k")
_EXAMPLES = """
examples:
  gradellm explain MODEL --prompt "The capital of Italy is"
  gradellm explain MODEL --chat --system "Be brief." --prompt-file question.txt --html answer.html
  gradellm explain MODEL --prompt "The capital of Italy is" --target " Rome" --layers 4 --json
  gradellm explain MODEL --prompt-file question.txt --chat --sources --spans documents.json
  gradellm explain MODEL --prompt-file question.txt --sources --removal-test
  gradellm explain MODEL --prompt-file riddle.txt --chat --max-new-tokens 2000 --sources --steps=-100:
  gradellm explain MODEL --prompt "The capital of Australia is" --foil " Canberra"
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
    group.add_argument("--foil", metavar="TEXT", help="explain why not this: the first token that differs, as a contrast")
    add_chat_arguments(group)

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
    group.add_argument(
        "--steps",
        type=steps,
        metavar="STEPS",
        help="explain only these of the generated tokens, as Python counts: a slice (100: leaves the first 100 out, "
        "--steps=-16: takes the last 16) or indices with commas (0,5,-1)",
    )
    add_head_weights_argument(group)

    group = parser.add_argument_group("generation")
    group.add_argument("--max-new-tokens", type=at_least(1), metavar="N", help="tokens to generate at most (default: 64)")
    group.add_argument("--do-sample", action="store_true", default=None, help="sample instead of taking the likeliest token")
    group.add_argument("--temperature", type=between(0), metavar="T", help="with --do-sample")
    group.add_argument("--top-p", type=between(0, 1, inclusive=True), metavar="P", help="with --do-sample")
    group.add_argument("--top-k", type=at_least(1), metavar="K", help="with --do-sample")
    group.add_argument("--seed", type=seed, metavar="N", help="of the random numbers of --do-sample")
    group.add_argument("--num-beams", type=at_least(1), metavar="N", help="beam search")
    add_result_arguments(parser).add_argument(
        "--removal-test",
        action="store_true",
        help="with --sources or --html: also what each sentence loses when its strongest source is taken out, measured",
    )


def run(options: argparse.Namespace) -> int:
    generate_kwargs = _generate_kwargs(options)
    if options.steps is not None and options.foil is not None:
        raise wrong("--foil explains one step, the first at which both differ: leave --steps out")
    if options.removal_test and not (options.sources or options.html):
        raise wrong("--removal-test needs --sources or --html")
    check_results(options, **{"--prompt-file": None if options.prompt_file in (None, "-") else Path(options.prompt_file)})
    prompt = _prompt(options)
    template = chat_options(options, is_chat=not isinstance(prompt, str))
    config = _config(options)
    model = load_model(options)
    if options.seed is not None:
        from transformers import set_seed

        set_seed(options.seed)
    explanation = model.explain(
        prompt, options.target, foil=options.foil, steps=options.steps, explain_config=config, **template, **generate_kwargs
    )
    if options.steps is not None and not any(explanation.explained):
        raise wrong(f"--steps leaves nothing to explain: {len(explanation.explained)} tokens are generated")
    return write_results(explanation, options, model.removal_test if options.removal_test else None)


def _generate_kwargs(options: argparse.Namespace) -> dict[str, Any]:
    names = ("max_new_tokens", "do_sample", *_SAMPLING, "num_beams")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.foil is not None:
        check_text("--foil", options.foil)
    if options.target is not None:
        check_text("--target", options.target)
        if given:
            raise wrong(f"nothing is generated with --target: leave out {_as_options(given)}")
        return {}
    if "do_sample" not in given and (needless := [name for name in _SAMPLING if name in given]):
        raise wrong(f"{_as_options(needless)} needs --do-sample")
    return {"max_new_tokens": 64, "do_sample": False, **given}


def _prompt(options: argparse.Namespace) -> Any:
    name = "--prompt" if options.prompt_file is None else f"--prompt-file {options.prompt_file}"
    text = check_text(name, options.prompt if options.prompt_file is None else _read(options.prompt_file))
    if not options.chat and options.system is None:
        return text
    messages = [{"role": "user", "content": text}]
    if options.prompt_file is not None and options.prompt_file.endswith(".json"):
        messages = _messages(name, text)
    system = [] if options.system is None else [{"role": "system", "content": check_text("--system", options.system)}]
    return [*system, *messages]


def _read(file: str) -> str:
    from ..errors import InvalidInputError

    try:
        if file != "-":
            return Path(file).read_text(encoding="utf-8-sig")  # some editors mark the beginning
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="strict")
        return "" if sys.stdin is None else sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"--prompt-file {file}: no text in {error.encoding}, from byte {error.start} on. Write it as {error.encoding}."
        ) from error


def _messages(name: str, text: str) -> list[dict[str, Any]]:
    from ..errors import InvalidInputError
    from ..text.chats import check_chat

    try:
        messages: list[dict[str, Any]] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise wrong(f"--chat with {name}: not a JSON list of messages: {error}") from error
    try:
        check_chat(messages)
    except InvalidInputError as error:
        raise wrong(f"--chat with {name}: {error}") from error
    return messages


def _config(options: argparse.Namespace) -> "GradELLMConfig":
    from ..configuration import GradELLMConfig
    from ..errors import InvalidInputError

    given: dict[str, Any] = {"head_weights": options.head_weights}
    if options.layers is not None:
        given["layers"] = options.layers
    if options.foil is not None:
        given["positive_only"] = False  # scores for the one and for the other
    try:
        if options.preset == "paper":
            return GradELLMConfig.paper(**given)
        return GradELLMConfig(spatial="loosened" if options.preset == "loosened" else "attention", **given)
    except InvalidInputError as error:
        raise wrong(str(error)) from error


def _layers(text: str) -> str | int | list[int]:
    if text == "all":
        return text
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not all, a number or numbers with commas") from None
    return numbers if "," in text else numbers[0]


def _as_options(names: Any) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)
