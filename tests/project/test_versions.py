"""The versions that are served, written in several places, are the same everywhere."""

import re

from gradellm_hf.architecture.compat import OLDEST_VERSION
from tests.support import ROOT
from tests.support.third_party import Project


def test_the_oldest_transformers_is_the_same_in_the_code_the_project_and_the_makefile():
    oldest = re.search(r"^OLDEST := (\S+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1]
    assert oldest == OLDEST_VERSION
    assert re.search(r">=([\d.]+)", Project(ROOT).dependencies["transformers"])[1] in (oldest, oldest.removesuffix(".0"))


def test_everything_that_users_install_has_a_lowest_version():
    project = Project(ROOT)
    needed = project.dependencies | {
        name: versions
        for extra in project.extras
        if extra not in ("release", "docs", "test")
        for name, versions in project.extra(extra).items()
    }
    assert [name for name, versions in needed.items() if ">=" not in versions and "==" not in versions] == []
