"""The environments of the libraries: made once, with the versions that `libraries.py` names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .libraries import Peer

_TORCH = os.environ.get("TORCH", "torch==2.13.0")


def interpreter(peer: Peer, folder: Path) -> Path:
    """The interpreter of its environment, which is made if it is not there.

    Raises:
        subprocess.CalledProcessError: A package cannot be installed; the error has pip's last words.
    """
    place = folder / peer.environment
    python, ready = place / "bin" / "python", place / "ready"
    wanted = "\n".join((_TORCH, *peer.packages, *peer.alone))
    if ready.exists() and ready.read_text() == wanted:
        return python
    print(f"Making {place} ...", flush=True)
    shutil.rmtree(place, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(place)])
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-qq", "--no-compile"]
    _run([*install, _TORCH, *peer.packages])
    if peer.alone:
        _run([*install, "--no-deps", *peer.alone])
    ready.write_text(wanted)
    return python


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
