"""Options that have another name now: the old one works for one release, with a warning."""

import sys
from collections.abc import Mapping, Sequence


def with_new_names(arguments: Sequence[str], new_names: Mapping[str, str]) -> list[str]:
    """The arguments of a command with the new names of its options. Warns on standard error about each old name.

    Args:
        new_names: The new options by the old ones; a name without dashes is that of an argument with no option before it.
    """
    renamed: list[str] = []
    for argument in arguments:
        old, equals, value = argument.partition("=")
        if old not in new_names:
            renamed.append(argument)
            continue
        new = new_names[old]
        is_option = new.startswith("--")
        called = f"is called {new} now" if is_option else f"is left out now, before {new}"
        print(f"gradellm: warning: {old} {called}; the next release no longer knows it", file=sys.stderr)
        if is_option:
            renamed.append(f"{new}{equals}{value}")
        elif equals:
            renamed.append(value)
    return renamed
