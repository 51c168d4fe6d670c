"""Every public docstring has an example that runs, and says what it raises.

The examples share one small model. `model`, `tokenizer`, `inputs`, `out` and `explanation` are known in all of them, and so
are the public names of the package and of the package's part that an example is about. Files go to an empty folder.
"""

import doctest
import functools
import importlib
import inspect
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers.pipelines import PIPELINE_REGISTRY

import gradellm_hf
import model_patches.registry
from gradellm_hf import ArchitectureAdapter, Explanation, GradELLM, GradELLMConfig, HeadWeights, explain_generate
from gradellm_hf.methods import registry
from gradellm_hf.results.output import ExplainGenerateOutput
from gradellm_hf.results.pictured import Pictured
from gradellm_hf.results.ranked import Ranked
from gradellm_hf.results.removals import Removals
from gradellm_hf.results.restated import Restated
from gradellm_hf.results.shown import Shown
from gradellm_hf.results.sources import Sources
from tests.support.evaluated import model_and_tokenizer
from tests.support.small_llama import small_llama

pytestmark = pytest.mark.slow

PARTS = (
    "gradellm_hf",
    "gradellm_hf.app",
    "gradellm_hf.dataset",
    "gradellm_hf.evaluation",
    "gradellm_hf.interchange",
    "gradellm_hf.images",
    "gradellm_hf.methods",
    "gradellm_hf.metrics",
    "gradellm_hf.visualization",
    "model_patches",
)
WITH_METHODS = (
    GradELLM,
    Explanation,
    Ranked,
    Restated,
    Pictured,
    Shown,
    Sources,
    Removals,
    ExplainGenerateOutput,
    GradELLMConfig,
    HeadWeights,
    ArchitectureAdapter,
)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _public() -> Iterator[tuple[str, Any, str]]:
    """Names, objects and the part of the package that has them: functions and classes, and the methods of some classes."""
    found: dict[int, tuple[str, Any, str]] = {}
    for part in PARTS:
        module = importlib.import_module(part)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):  # not constants
                found.setdefault(id(value), (f"{part}.{name}", value, part))
    yield from found.values()
    for cls in WITH_METHODS:
        for name, member in vars(cls).items():
            member = getattr(member, "__func__", member)  # of a classmethod
            if not name.startswith("_") and inspect.isfunction(member):
                yield f"{cls.__module__}.{cls.__name__}.{name}", member, "gradellm_hf"


PUBLIC = list(_public())
NAMES = [name for name, _, _ in PUBLIC]


def _section(value: Any, title: str) -> str | None:
    """The text of a section of a docstring; None if it has none."""
    own = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
    found = re.search(rf"^{title}:\n((?:    .*\n|\n)+)", inspect.cleandoc(own or "") + "\n", flags=re.MULTILINE)
    return found and found[1]


@functools.cache
def _shared() -> dict[str, Any]:
    """What the examples need besides names of the package."""
    _, tokenizer = model_and_tokenizer()
    model = small_llama(vocab_size=len(tokenizer))  # every token that it writes has a text
    inputs = tokenizer("The capital of Italy is", return_tensors="pt")
    out = explain_generate(model, **inputs, max_new_tokens=4, do_sample=False)
    explanation = out.explanations(tokenizer)[0]
    return {"torch": torch, "model": model, "tokenizer": tokenizer, "inputs": inputs, "out": out, "explanation": explanation}


def _namespace(module: str) -> dict[str, Any]:
    part = importlib.import_module(module)
    names = {name: getattr(gradellm_hf, name) for name in gradellm_hf.__all__}
    return names | {name: getattr(part, name) for name in part.__all__} | _shared()


@pytest.fixture(autouse=True)
def _nothing_stays(tmp_path, monkeypatch):
    """Files that examples write go to an empty folder; what they register is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_patches.registry, "_by_hand", {})
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    monkeypatch.setattr(PIPELINE_REGISTRY, "supported_tasks", dict(PIPELINE_REGISTRY.supported_tasks))
    with warnings.catch_warnings():
        yield


def test_the_public_names_are_found():
    some = {"gradellm_hf.explain_generate", "gradellm_hf.metrics.auc", "gradellm_hf.model.wrapper.GradELLM.explain"}
    assert some <= set(NAMES)
    assert len(set(NAMES)) == len(NAMES) > 70


@pytest.mark.parametrize(("name", "value", "module"), PUBLIC, ids=NAMES)
def test_the_example_of_a_public_docstring_runs_and_shows_what_it_says(name, value, module):
    examples = _section(value, "Examples")  # not "Example": mkdocstrings shows the code of that one as a quotation
    assert examples, f"`{name}` has no section `Examples:` in its docstring."
    test = doctest.DocTestParser().get_doctest(examples, _namespace(module), name, inspect.getsourcefile(value), 0)
    assert test.examples, f"The section `Examples:` of `{name}` has no line that begins with `>>>`."
    report: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False).run(test, out=report.append)
    assert not failed, "".join(report)


@pytest.mark.parametrize(("name", "value", "module"), PUBLIC, ids=NAMES)
def test_a_public_function_with_arguments_says_what_it_raises(name, value, module):
    parameters = [] if inspect.isclass(value) else [p for p in inspect.signature(value).parameters if p not in ("self", "cls")]
    if parameters:
        assert _section(value, "Raises"), f"`{name}` takes {parameters}; say in `Raises:` what happens if they are not usable."
