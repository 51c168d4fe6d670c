"""For `mkdocs build`: what lies outside docs/ gets its address in the site."""

from typing import Any

_PAGES = {"../benchmarks/RESULTS.md": "results.md"}


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Pages link to files as they are found in the source, so that the links work there too."""
    for file, page in _PAGES.items():
        markdown = markdown.replace(f"]({file})", f"]({page})")
    return markdown
