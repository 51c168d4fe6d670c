"""`make release` builds and checks what is committed, and refuses what is not ready: on a small repository, without network."""

import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from scripts import release as script
from scripts.release import ReleaseError, release
from tests.support import ROOT

pytestmark = pytest.mark.slow

_CHANGELOG = """# Changelog

## 1.2.3 (2026-03-01)

- A thing is new.

### In detail

- Another one, too.

## 1.2.2 (2026-02-01)

- An old thing.
"""


def git(folder, *arguments):
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path):
    """A repository with this project's build configuration, ready for the release of version 1.2.3."""
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    for package in ("gradellm_hf", "model_patches"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(_CHANGELOG)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def commit(project):
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--allow-empty", "--message", "A change")


def change(project, name, old, new):
    text = (project / name).read_text()
    assert old in text
    (project / name).write_text(text.replace(old, new))
    commit(project)


def test_a_release_is_built_and_the_commands_that_are_left_are_printed(project):
    printed = release(project)
    wheel, sdist = "gradellm_hf-1.2.3-py3-none-any.whl", "gradellm_hf-1.2.3.tar.gz"
    assert sorted(path.name for path in (project / "dist").iterdir() if path.name != ".gitignore") == sorted(
        [wheel, sdist, "gradellm_hf-1.2.3-notes.md"]
    )
    assert 'git tag -a v1.2.3 -m "gradellm-hf 1.2.3"\n  git push origin v1.2.3\n' in printed
    assert printed.endswith(f"-m twine upload dist/{wheel} dist/{sdist}")
    with zipfile.ZipFile(project / "dist" / wheel) as archive:
        assert "model_patches/__init__.py" in archive.namelist()
    with tarfile.open(project / "dist" / sdist) as archive:
        assert "gradellm_hf-1.2.3/CHANGELOG.md" in archive.getnames()
    assert not subprocess.run(["git", "status", "--porcelain"], cwd=project, capture_output=True).stdout


def test_the_notes_are_the_text_of_the_versions_section(project):
    release(project)
    notes = (project / "dist" / "gradellm_hf-1.2.3-notes.md").read_text()
    assert notes == "- A thing is new.\n\n### In detail\n\n- Another one, too.\n"


def test_a_second_build_takes_the_place_of_the_first(project):
    release(project)
    change(project, "README.md", "# Grad-ELLM", "# Grad-ELLM again")
    release(project)
    with zipfile.ZipFile(project / "dist" / "gradellm_hf-1.2.3-py3-none-any.whl") as archive:
        assert "# Grad-ELLM again" in archive.read("gradellm_hf-1.2.3.dist-info/METADATA").decode()


@pytest.mark.parametrize("name", ["README.md", "new.py"])
def test_a_tree_with_changes_is_refused_by_the_files_names(name, project):
    with (project / name).open("a") as file:
        file.write("changed\n")
    with pytest.raises(ReleaseError, match=rf"not committed; commit or stash them first:\n.*{name}"):
        release(project)
    assert not (project / "dist").exists()


def test_a_version_that_is_tagged_is_refused(project):
    git(project, "tag", "v1.2.3")
    with pytest.raises(ReleaseError, match=r"v1\.2\.3 is tagged already\. Raise `__version__`"):
        release(project)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "CHANGELOG.md",
            "(2026-03-01)",
            "(unreleased)",
            r"gives 'unreleased' as the date of 1\.2\.3\. .*`## 1\.2\.3 \(YYYY-MM-DD\)`",
        ),
        ("CHANGELOG.md", "(2026-03-01)", "(2026-02-30)", r"gives '2026-02-30' as the date"),
        (
            "CHANGELOG.md",
            "## 1.2.3 (",
            "## 1.3.0 (",
            r"The first section of CHANGELOG\.md is that of 1\.3\.0\. It must begin with",
        ),
        ("gradellm_hf/__init__.py", "1.2.3", "1.2.2", r"The first section of CHANGELOG\.md is that of 1\.2\.3\. .*`## 1\.2\.2"),
        ("CHANGELOG.md", _CHANGELOG, "# Changelog\n", r"has no section"),
        (
            "CHANGELOG.md",
            _CHANGELOG,
            "## 1.2.3 (2026-03-01)\n\n## 1.2.2 (2026-02-01)\n\n- Old.\n",
            r"1\.2\.3 in CHANGELOG\.md is empty",
        ),
        ("gradellm_hf/__init__.py", "__version__", "version", r"has no line `__version__"),
    ],
)
def test_a_version_and_a_changelog_that_do_not_go_together_are_refused(name, old, new, message, project):
    change(project, name, old, new)
    with pytest.raises(ReleaseError, match=message):
        release(project)
    assert not (project / "dist").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'path = "gradellm_hf/__init__.py"',
            'path = "model_patches/__init__.py"',
            r"has not made .*1\.2\.3.* dist/ has: .*9\.9",
        ),
        ('readme = "README.md"\n', "", r"has no README as its description"),
        ('license-files = ["LICENSE"]', "license-files = []", r"\.whl holds no LICENSE"),
        ('build-backend = "hatchling.build"', "build-backend = [", r"hatchling build .*failed:\n"),
    ],
)
def test_what_is_wrong_with_the_build_is_said(old, new, message, project):
    (project / "model_patches" / "__init__.py").write_text('__version__ = "9.9"\n')
    change(project, "pyproject.toml", old, new)
    with pytest.raises(ReleaseError, match=message):
        release(project)


@pytest.mark.parametrize("status", [0, 1])
def test_twine_has_its_say_where_it_is_installed(status, project, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("site")
    (folder / "twine.py").write_text(f"import sys\nprint('twine saw', *sys.argv[1:])\nsys.exit({status})\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(folder)
    if status:
        with pytest.raises(ReleaseError, match=r"failed:\ntwine saw check --strict \S+\.whl \S+\.tar\.gz"):
            release(project)
    else:
        assert release(project).startswith("Built and checked:\n")


def test_without_twine_that_is_said(project, monkeypatch):
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    assert release(project).startswith("Built and checked (but not by twine, which is not installed: pip install")


def test_the_command_says_why_there_is_no_release_and_fails(project):
    (project / "scripts").mkdir()
    for name in ("__init__.py", "release.py"):
        shutil.copy(ROOT / "scripts" / name, project / "scripts")
    done = subprocess.run([sys.executable, "-m", "scripts.release"], cwd=project, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("No release: The working tree has changes that are not committed")
    commit(project)
    done = subprocess.run([sys.executable, "-m", "scripts.release"], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Left to do:\n" in done.stdout
