"""Options for the template of a chat."""

import argparse
from pathlib import Path
from typing import Any

from .checks import read_json, wrong


def add_chat_arguments(group: Any) -> None:
    """The options, in a group of a parser."""
    yes_or_no = argparse.BooleanOptionalAction
    group.add_argument("--tools", type=Path, metavar="FILE", help="a JSON list of tools for the chat template")
    group.add_argument("--documents", type=Path, metavar="FILE", help="a JSON list of documents for the chat template")
    group.add_argument("--chat-template", type=Path, metavar="FILE", help="a Jinja template to write the chat with")
    group.add_argument("--enable-thinking", action=yes_or_no, help="said to the chat template, if given")
    group.add_argument(
        "--continue-final-message", action=yes_or_no, help="go on with the last message (default: if it is an assistant's)"
    )


def chat_options(options: argparse.Namespace, *, is_chat: bool) -> dict[str, Any]:
    """What the options say to the template; raises argparse.ArgumentError if a file cannot be read, or there is no chat."""
    named = {
        "tools": options.tools,
        "documents": options.documents,
        "chat_template": options.chat_template,
        "enable_thinking": options.enable_thinking,
        "continue_final_message": options.continue_final_message,
    }
    given = {name: value for name, value in named.items() if value is not None}
    if given and not is_chat:
        raise wrong(f"{', '.join(f'--{name}' for name in given).replace('_', '-')} is for the template of a chat: add --chat")
    for name in given.keys() & {"tools", "documents"}:
        given[name] = read_json(f"--{name}", given[name], list)
    if "chat_template" in given:
        try:
            given["chat_template"] = given["chat_template"].read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise wrong(f"--chat-template {given['chat_template']} cannot be read: {error}") from error
    return given
