"""What all tests share: the real model, and settings of the libraries."""

import logging
import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before Transformers is imported: no test may need a model hub

import hypothesis
import pytest
import torch
import transformers

from gradellm_hf.demo_model import load_smollm2
from tests.support.versions import IS_NEWEST

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell, tests' processes would ignore Ctrl-C
torch.set_num_threads(1)  # on tensors this small, threads only wait for each other
transformers.utils.logging.disable_progress_bar()
hypothesis.settings.register_profile("gradellm", deadline=None, derandomize="CI" in os.environ, print_blob=True)
hypothesis.settings.load_profile("gradellm")


class _FailOnDeprecation(logging.Handler):
    """Transformers logs its deprecations instead of warning of them; here they are errors.

    Only those of the newest version: earlier ones also log what they themselves do.
    """

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecated" in message.lower():
            raise DeprecationWarning(message)


if IS_NEWEST:
    logging.getLogger("transformers").addHandler(_FailOnDeprecation(level=logging.WARNING))


_FIRST = (("devices", "distributed"), ("slow", "browser"))


@pytest.fixture(scope="session")
def smollm2():
    """(model, tokenizer): SmolLM2-135M-Instruct in float32. Shared: a test that changes it puts it back."""
    return load_smollm2()


@pytest.fixture
def quiet_transformers():
    """Assisted decoding logs a deprecation of its own making."""
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.set_verbosity(verbosity)


def pytest_collection_modifyitems(items):
    """Tests of the real model are slow, and say so by asking for it. Files with slow tests come first: a long one in the end
    would keep one process busy and the others idle."""
    first = {}
    for item in items:
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
        turns = [turn for turn, markers in enumerate(_FIRST) if any(map(item.get_closest_marker, markers))]
        first[item.path] = min([first.get(item.path, len(_FIRST)), *turns])
    items.sort(key=lambda item: first[item.path])
