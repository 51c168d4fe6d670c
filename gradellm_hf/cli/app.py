"""`gradellm app`: a chat in the browser."""

import argparse
from pathlib import Path

from .checks import at_least, check_text, read_json
from .model_options import add_head_weights_argument, add_model_arguments, load_model

_EXAMPLES = """
examples:
  gradellm app HuggingFaceTB/SmolLM2-135M-Instruct
  gradellm app ./my-model --documents documents.json --port 8000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    add_model_arguments(parser)
    group = parser.add_argument_group("chat")
    group.add_argument(
        "--documents", type=Path, metavar="FILE", help="a JSON object {title: text}: every chat begins with these"
    )
    group.add_argument("--system", metavar="TEXT", default="", help="a system message to begin with")
    group.add_argument(
        "--max-new-tokens", type=at_least(1), default=512, metavar="N", help="the longest answer to choose (default: 512)"
    )
    add_head_weights_argument(parser.add_argument_group("explanation"))
    group = parser.add_argument_group("server")
    group.add_argument(
        "--host", metavar="ADDRESS", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this machine)"
    )
    group.add_argument("--port", type=at_least(1), metavar="N", help="its port (default: the first free one from 7860 on)")
    group.add_argument("--share", action="store_true", help="have Gradio make a public link, for 72 hours")
    group.add_argument("--open", action="store_true", help="open the page in a browser")
    group.add_argument(
        "--answers-at-once", type=at_least(1), default=1, metavar="N", help="answers written at the same time (default: 1)"
    )


def run(options: argparse.Namespace) -> int:
    from ..app import launch  # says first of all if Gradio is missing
    from ..configuration import HeadWeights

    documents = None if options.documents is None else read_json("--documents", options.documents, dict)
    if options.system:
        check_text("--system", options.system)
    weights = None if options.head_weights is None else HeadWeights.load(options.head_weights)
    launch(
        load_model(options),
        host=options.host,
        port=options.port,
        share=options.share,
        documents=documents,
        system=options.system,
        head_weights=weights,
        most_new_tokens=options.max_new_tokens,
        answers_at_once=options.answers_at_once,
        open_browser=options.open,
    )
    return 0
