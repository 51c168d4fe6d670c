"""What meets whoever comes to the repository: the commands, forms and settings that it names are real."""

import re

import pytest
import yaml

from tests.support import ROOT
from tests.support.third_party import Project

GITHUB = ROOT / ".github"
FORMS = sorted(path for path in GITHUB.glob("ISSUE_TEMPLATE/*.yml") if path.name != "config.yml")
_TEXTS = (
    *("README.md", "CONTRIBUTING.md", ".ci/run", ".pre-commit-config.yaml"),
    *(".github/workflows/ci.yml", ".github/pull_request_template.md"),
)

pytestmark = pytest.mark.skipif(not GITHUB.exists(), reason="not a checkout")


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def make_targets():
    return set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1].split())


@pytest.mark.parametrize("name", _TEXTS)
def test_every_make_command_that_is_named_is_in_the_makefile(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    named = re.findall(r"(?:^|`|run: |entry: )make ([a-z]+(?:-[a-z]+)*)", text, flags=re.MULTILINE)
    assert named or "make" not in text
    assert set(named) <= make_targets()


def test_every_extra_that_is_named_is_in_the_project():
    extras = set(Project(ROOT).extras)
    for path in [ROOT / "CONTRIBUTING.md", ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "scripts").glob("*.py")]:
        named = re.findall(r"(?:gradellm-hf|pip install \"?\.)\[([\w,]+)\]", path.read_text(encoding="utf-8"))
        assert {extra for names in named for extra in names.split(",")} <= extras, path


def test_the_commit_hooks_use_the_environment_of_the_project():
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff", "ruff-format", "lint"]
    assert all(hook["language"] == "system" for hook in repository["hooks"])


def test_the_workflow_runs_everything_on_changes_and_the_suite_on_the_next_transformers_by_schedule():
    workflow = read(".github/workflows/ci.yml")
    assert {"pull_request", "push", "schedule"} <= set(workflow[True])  # YAML reads `on` as a truth value
    runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in workflow["jobs"].items()}
    assert runs["everything"] == [".ci/run"]
    assert "github.com/huggingface/transformers" in runs["transformers-main"][1]
    assert runs["transformers-main"][2] == "make test"
    assert runs["versions"] == ["make ${{ matrix.tests }}"]
    matrix = workflow["jobs"]["versions"]["strategy"]["matrix"]["include"]
    assert {job["tests"] for job in matrix} <= make_targets()
    classifiers = Project(ROOT).table["project"]["classifiers"]
    supported = {name.rpartition(" ")[2] for name in classifiers if name.startswith("Programming Language :: Python :: 3.")}
    containers = {job["container"] for job in workflow["jobs"].values()}
    assert containers == {"python:3.11-bookworm", "python:${{ matrix.python }}-bookworm"}
    assert {"3.11", *(job["python"] for job in matrix)} == supported


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one_that_github_takes(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(form) == {"name", "description", "labels", "body"}
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    for field in form["body"]:
        assert field["type"] in ("textarea", "input", "checkboxes")
        assert set(field) <= {"type", "id", "attributes", "validations"}
        assert set(field["attributes"]) <= {"label", "description", "render", "options"}
        assert field["attributes"]["label"]
        assert (field["type"] == "checkboxes") == ("options" in field["attributes"])
        assert "render" not in field["attributes"] or field["type"] == "textarea"


def test_there_are_forms_for_bugs_architectures_and_features():
    assert [path.stem for path in FORMS] == ["architecture_request", "bug_report", "feature_request"]


def test_the_citation_names_the_software_and_the_paper_as_the_project_does():
    citation = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    project = Project(ROOT).table["project"]
    assert citation["license"] == project["license"]
    (paper,) = citation["references"]
    assert paper["url"] == project["urls"]["Paper"]
    assert paper["url"] in (ROOT / "README.md").read_text(encoding="utf-8")
    assert [author["family-names"] for author in paper["authors"]] == ["Huang", "Chan"]
