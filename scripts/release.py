"""Everything of a release but the upload: `make release` checks, builds and says which commands are left to run.

- The working tree is clean, so that what is built is what is committed, and the version has not been tagged yet.
- CHANGELOG.md begins with the section of the version in gradellm_hf/__init__.py, with its date: `## 1.2.3 (2026-01-31)`.
- sdist and wheel are built into dist/, without network, and hold that version, the README and the licence. If twine is there,
  it checks them, too.
- The section's text is in dist/ as the notes of the release.
"""

import datetime
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_SECTION = re.compile(r"^## (?P<version>\S+) \((?P<date>[^)]*)\)\n(?P<notes>.*?)(?=^## |\Z)", flags=re.MULTILINE | re.DOTALL)


class ReleaseError(Exception):
    """Why there can be no release yet; the message says what to do."""


def release(root: Path = ROOT) -> str:
    """Builds and checks the release of the version in `root`, and returns what to do then.

    Raises:
        ReleaseError: Something of what the module describes is not so.
    """
    version = _version(root)
    _check_tree(root, version)
    notes = _notes(root, version)
    wheel, sdist = _build(root, version)
    for path, metadata in ((wheel, _wheel_metadata(wheel)), (sdist, _sdist_metadata(sdist))):
        _check_metadata(path, metadata, version)
    checked = _check_with_twine(wheel, sdist)
    notes_path = root / "dist" / f"gradellm_hf-{version}-notes.md"
    notes_path.write_text(notes, encoding="utf-8")
    files = " ".join(str(path.relative_to(root)) for path in (wheel, sdist))
    return f"""\
Built and checked{"" if checked else " (but not by twine, which is not installed: pip install twine)"}:
  {files}
Notes of the release:
  {notes_path.relative_to(root)}

Left to do:
  git tag -a v{version} -m "gradellm-hf {version}"
  git push origin v{version}
  {Path(sys.executable).name} -m twine upload {files}"""


def _version(root: Path) -> str:
    path = root / "gradellm_hf" / "__init__.py"
    found = re.search(r'^__version__ = "([^"]+)"$', path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if found is None:
        raise ReleaseError('gradellm_hf/__init__.py has no line `__version__ = "..."`.')
    return found[1]


def _check_tree(root: Path, version: str) -> None:
    if changed := _run(root, "git", "status", "--porcelain"):
        raise ReleaseError(f"The working tree has changes that are not committed; commit or stash them first:\n{changed}")
    if _run(root, "git", "tag", "--list", f"v{version}"):
        raise ReleaseError(f"v{version} is tagged already. Raise `__version__` in gradellm_hf/__init__.py.")


def _notes(root: Path, version: str) -> str:
    """The text of the version's section."""
    section = _SECTION.search((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    expected = f"It must begin with the section `## {version} (YYYY-MM-DD)`, as gradellm_hf/__init__.py has that version"
    if section is None:
        raise ReleaseError(f"CHANGELOG.md has no section `## version (date)`. {expected}.")
    if section["version"] != version:
        raise ReleaseError(f"The first section of CHANGELOG.md is that of {section['version']}. {expected}.")
    try:
        datetime.date.fromisoformat(section["date"])
    except ValueError:
        raise ReleaseError(f"CHANGELOG.md gives {section['date']!r} as the date of {version}. {expected}.") from None
    if not (notes := section["notes"].strip()):
        raise ReleaseError(f"The section of {version} in CHANGELOG.md is empty: write what has changed.")
    return notes + "\n"


def _build(root: Path, version: str) -> tuple[Path, Path]:
    """The wheel and the sdist, anew."""
    wheel = root / "dist" / f"gradellm_hf-{version}-py3-none-any.whl"
    sdist = root / "dist" / f"gradellm_hf-{version}.tar.gz"
    for path in (wheel, sdist):
        path.unlink(missing_ok=True)
    _run(root, sys.executable, "-m", "hatchling", "build", "--directory", str(root / "dist"))
    if missing := [path.name for path in (wheel, sdist) if not path.exists()]:
        raise ReleaseError(f"The build has not made {' and '.join(missing)}. dist/ has: {sorted(_names(root / 'dist'))}.")
    return wheel, sdist


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _wheel_metadata(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        _check_license(path, names)
        return archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()


def _sdist_metadata(path: Path) -> str:
    with tarfile.open(path) as archive:
        names = archive.getnames()
        _check_license(path, names)
        member = archive.extractfile(next(name for name in names if name.count("/") == 1 and name.endswith("/PKG-INFO")))
        assert member is not None  # it is a file
        return member.read().decode()


def _check_license(path: Path, names: list[str]) -> None:
    if not any(name.endswith("/LICENSE") for name in names):
        raise ReleaseError(f"{path.name} holds no LICENSE.")


def _check_metadata(path: Path, text: str, version: str) -> None:
    metadata = Parser().parsestr(text)
    if metadata["Version"] != version:
        raise ReleaseError(f"{path.name} says that it is version {metadata['Version']}.")
    if not metadata.get_payload().strip():  # type: ignore[union-attr]
        raise ReleaseError(f"{path.name} has no README as its description.")


def _check_with_twine(*paths: Path) -> bool:
    """Whether twine is there, and then has found nothing."""
    if find_spec("twine") is None:
        return False
    _run(paths[0].parent, sys.executable, "-m", "twine", "check", "--strict", *map(str, paths))
    return True


def _run(folder: Path, *command: str) -> str:
    """What a command prints.

    Raises:
        ReleaseError: It fails.
    """
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise ReleaseError(f"`{' '.join(command)}` failed:\n{done.stdout}{done.stderr}")
    return done.stdout.rstrip()


if __name__ == "__main__":
    try:
        print(release())
    except ReleaseError as error:
        sys.exit(f"No release: {error}")
