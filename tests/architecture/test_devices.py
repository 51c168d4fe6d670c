"""Models over several CUDA devices. They are simulated, for good in a process, so the tests run in one of their own."""

import os
import subprocess
import sys

import pytest

from tests.support import ROOT, SUPPORT, simulated_devices


@pytest.mark.devices
def test_models_over_several_devices_are_explained_as_on_one():
    try:
        simulated_devices.build()
    except simulated_devices.CannotBuildError as reason:
        pytest.skip(str(reason))
    tests = SUPPORT / "on_several_devices.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
