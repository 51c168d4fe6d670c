"""For `mkdocs build`: changes links to files outside docs/, and removes marks that are for the tests only."""

import re
from typing import Any

_PAGES = {"../benchmarks/RESULTS.md": "results.md"}
_MARKED_FENCE = re.compile(r"^```(\w+) notest$", flags=re.MULTILINE)


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Pages link to files by their paths in the source, so that the links work there too."""
    for file, page in _PAGES.items():
        markdown = markdown.replace(f"]({file})", f"]({page})")
    return _MARKED_FENCE.sub(r"```\1", markdown)
