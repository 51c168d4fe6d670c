"""The documentation does what it says: its code runs and prints what it shows, and its site is built without a warning.

Python blocks of a page run in order, in one namespace, and so do the `gradellm` commands of its bash blocks; a block marked
`notest` is left out. A `text` block right after one is what that prints, up to rounding. The model that the pages name is
replaced by a local copy.
"""

import os
import re
import shlex
import subprocess
import sys

import pytest

import model_patches.registry
from gradellm_hf.cli import command_line as cli
from gradellm_hf.demo_model import smollm2_folder
from tests.support import ROOT

pytestmark = pytest.mark.slow

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
LINKING = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"))]
MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"

_FENCE = re.compile(r"^```(\S*)([^\n]*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
_LOADED = re.compile(r"""(?:<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=|url\()["']?(?:https?:)?//[^"'>)]+""")
_ARXIV = re.compile(r"(?<![\d.])\d{4}\.\d{4,5}(?!\d)")
_NUMBER = re.compile(r"[-+]?\d+\.\d+| *\d+(?= %)")


def _blocks(page):
    """The page's blocks that are to be run: (number, language, source, what it shows as its output or None)."""
    text = page.read_text(encoding="utf-8")
    fences = list(_FENCE.finditer(text))
    for number, fence in enumerate(fences, 1):
        if fence[1] not in ("python", "bash") or "notest" in fence[2].split():
            continue
        following = fences[number] if number < len(fences) else None
        is_shown = following and following[1] == "text" and not text[fence.end() : following.start()].strip()
        yield number, fence[1], fence[3].replace(MODEL_NAME, str(smollm2_folder())), following[3] if is_shown else None


def _ids(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


def _run_commands(source):
    """Runs the lines that call `gradellm`, in this process."""
    for line in source.splitlines():
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program == "gradellm":
            assert cli.main(arguments) == 0, line


@pytest.fixture(autouse=True)
def _away_from_the_source(tmp_path, monkeypatch):
    """Files that the pages write go to an empty folder; adapters that they register are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_patches.registry, "_by_hand", {})
    (tmp_path / "custom_generate").symlink_to(ROOT / "custom_generate")


@pytest.mark.parametrize("page", PAGES, ids=_ids(PAGES))
def test_the_code_of_a_page_runs_in_order_and_prints_what_it_shows(page, capsys):
    namespace = {"__name__": "__main__"}
    for number, language, source, shown in _blocks(page):
        capsys.readouterr()
        if language == "python":
            exec(compile(source, f"{page.name}, block {number}", "exec"), namespace)
        else:
            _run_commands(source)
        if shown is not None:
            _assert_same_up_to_rounding(capsys.readouterr().out, shown)


def _assert_same_up_to_rounding(actual, shown):
    assert _NUMBER.sub("#", actual) == _NUMBER.sub("#", shown)
    for found, expected in zip(_NUMBER.findall(actual), _NUMBER.findall(shown)):
        assert float(found) == pytest.approx(float(expected), rel=0.02, abs=0.11 if "." in expected else 1)


def test_the_quick_start_of_the_readme_is_ten_lines():
    quick_start = README.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert len([line for line in quick_start.splitlines() if line.strip()]) == 10


@pytest.mark.parametrize("page", LINKING, ids=_ids(LINKING))
def test_the_files_that_a_page_links_to_exist(page):
    missing = [link for link in _LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not missing


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES) - 1  # the README is none; an error page is added
    for page in [*pages, *site.rglob("*.css")]:
        assert not _LOADED.findall(page.read_text(encoding="utf-8")), page
    for page in pages:
        assert not re.search(r"(```|\w+ notest)", page.read_text(encoding="utf-8")), f"{page}: a code block is shown as text"


def test_every_paper_that_the_code_names_is_on_a_page():
    """By its number on arXiv, so that a reader of the pages finds it too."""
    sources = [path for package in ("gradellm_hf", "model_patches") for path in (ROOT / package).rglob("*.py")]
    named = {number for path in sources for number in _arxiv_numbers(path)}
    assert "2601.03089" in named
    assert named - {number for page in PAGES for number in _arxiv_numbers(page)} == set()


def _arxiv_numbers(path):
    _, *after = re.split("arxiv", path.read_text(encoding="utf-8"), maxsplit=1, flags=re.IGNORECASE)
    return _ARXIV.findall("".join(after))
