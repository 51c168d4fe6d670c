"""AttnLRP (Achtibat et al. 2024, arXiv 2402.05602) by its authors' library lxt, called as this package's methods are."""

import json
import os
import shutil
import subprocess
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..architecture.quantization import is_quantized
from ..architecture.reading import input_device
from ..architecture.tolerances import OTHER_KERNELS, logits_difference
from ..errors import GradELLMError, UnsupportedArchitectureError
from ..metrics.perturbation import PerturbedText
from .registry import Method, heatmaps

INTERPRETER = "GRADELLM_LXT_PYTHON"  # the environment variable that names it
_SETUP = (
    "lxt needs an older Transformers, so it has an environment of its own: python3.11 -m venv lxt-env && "
    'lxt-env/bin/pip install torch "transformers==4.52.4" && lxt-env/bin/pip install --no-deps lxt==2.1'
)


def attn_lrp(*, python: str | os.PathLike[str] | None = None, absolute: bool = False) -> Method:
    """Relevance of each token's embedding for the logit, by the rules of AttnLRP.

    lxt runs in another process with its own environment, one process per model. It starts at the first call, and ends with the
    model or with this process. It has a copy of the weights as they were at the first call, on the same device. Each call
    checks that the model has the same logits there.

    Relevance is embedding times gradient, summed. The rules replace the gradients of some functions (Arras et al. 2025,
    arXiv 2502.15886). Softmax and biases keep a part of it, so its sum is not the logit.

    Args:
        python: The interpreter of an environment with lxt 2.1, torch and Transformers 4.52; by default the one that the
            environment variable `GRADELLM_LXT_PYTHON` names.
        absolute: Drop the sign of the relevance. lxt's authors keep it: a token may speak against what was written. But
            metrics that take negative scores as zeros then see only a part of the method.

    Returns:
        A method; see `Method`.

    Raises:
        GradELLMError: No interpreter is named, or there is no such file. Or, when the returned method is called: lxt cannot
            be run, does not know the model, or fails.
        UnsupportedArchitectureError: The older Transformers computes other logits, when the returned method is called.

    Examples:
        >>> method = attn_lrp(python="lxt-env/bin/python")  # here there is no such environment
        Traceback (most recent call last):
        gradellm_hf.errors.GradELLMError: There is no interpreter 'lxt-env/bin/python' for `attn_lrp`. ...
    """
    interpreter = os.fspath(os.environ.get(INTERPRETER, "") if python is None else python)
    if not interpreter:
        raise GradELLMError(
            f"`attn_lrp` needs the interpreter of an environment with lxt: `python`, or {INTERPRETER}. {_SETUP}"
        )
    if not os.access(interpreter, os.X_OK):
        raise GradELLMError(f"There is no interpreter {interpreter!r} for `attn_lrp`. {_SETUP}")

    def method(model: Any, sequences: Tensor, prompt_length: int, attention_mask: Tensor | None = None, /) -> Tensor:
        text = PerturbedText(model, sequences, prompt_length, attention_mask)
        length = text.token_ids.shape[1] - 1
        with torch.inference_mode(False), torch.no_grad():
            known = text.forward(
                text.embeddings[:, :length], text.real[:, :length], text.position_ids[:, :length], text.num_steps
            )
        text.check_finite(known.log_softmax(-1).amax(-1))
        targets = text.token_ids[:, prompt_length:]
        found = _explain(text, interpreter)
        _check_logits(text, known, targets, found["logits"].to(known))
        scores = heatmaps(text, found["relevances"].to(known.device))
        if not scores.isfinite().all():
            raise GradELLMError(f"lxt's relevances are not finite in {text.model.dtype}; load the model in torch.float32.")
        return scores.abs() if absolute else scores

    return method


def _check_logits(text: PerturbedText, known: Tensor, targets: Tensor, logits: Tensor) -> None:
    """Compares lxt's `logits` of the `targets`, `[R, N]`, with those of the model, `known`, `[R, N, V]`."""
    actual = known.scatter(-1, targets[..., None], logits[..., None])
    difference = logits_difference(torch.where(text.step_mask[..., None], actual, known), known)
    if not difference <= OTHER_KERNELS.of(text.model.dtype):
        raise UnsupportedArchitectureError(
            f"In lxt's Transformers, logits of `{text.model.config.model_type}` differ by {difference:.1e} of the largest. It "
            "computes something else there, or its weights have been changed since the first call (then load it anew)."
        )


_workers: "weakref.WeakKeyDictionary[PreTrainedModel, dict[str, _Worker]]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _explain(text: PerturbedText, interpreter: str) -> dict[str, Tensor]:
    """What the worker of a model finds. A worker is started if there is none, or it has ended."""
    with _lock:
        workers = _workers.setdefault(text.model, {})
        if interpreter not in workers or not workers[interpreter].end.alive:
            workers[interpreter] = _Worker(text.model, interpreter)
        return workers[interpreter].explain(text)


class _Worker:
    """A process with a copy of a model. It ends with the model, with this process, and when anything fails."""

    def __init__(self, model: PreTrainedModel, interpreter: str) -> None:
        if is_quantized(model) or getattr(model, "_hf_peft_config_loaded", False):
            raise UnsupportedArchitectureError("`attn_lrp` takes plain weights: dequantise the model, or merge its adapters.")
        self.name = model.config.model_type
        self.folder = Path(tempfile.mkdtemp(prefix="gradellm-lxt-"))
        self.process: Any = _start(interpreter, self.folder)
        self.end = weakref.finalize(model, _end, self.process, self.folder)
        try:
            self._ask(task="start", threads=torch.get_num_threads())
            _save(model, self.folder / "model")
            self._ask(task="load", dtype=str(model.dtype).removeprefix("torch."), device=str(input_device(model)))
        except BaseException:
            self.end()
            raise
        shutil.rmtree(self.folder / "model", ignore_errors=True)

    def explain(self, text: PerturbedText) -> dict[str, Tensor]:
        """Relevances `[R, N, S - 1]` and logits `[R, N]` of the targets."""
        inputs = {"token_ids": text.token_ids, "attention_mask": text.real.long(), "position_ids": text.position_ids}
        try:
            save_file({name: x.contiguous().cpu() for name, x in inputs.items()}, self.folder / "text.safetensors")
            self._ask(task="explain", steps=text.num_steps)
            return load_file(self.folder / "found.safetensors")
        except BaseException:  # its answer may still come, and would be taken for that to the next request
            self.end()
            raise

    def _ask(self, **request: Any) -> None:
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            log = (self.folder / "log").read_text(errors="replace").strip().splitlines()
            error = f"its process ended: {' '.join(log[-1:])}"
        else:
            error = json.loads(answer).get("error")
        if error:
            hint = f" {_SETUP}" if request["task"] == "start" else ""
            raise GradELLMError(f"lxt failed on `{self.name}`: {error}.{hint}")


def _start(interpreter: str, folder: Path) -> "subprocess.Popen[str]":
    with (folder / "log").open("wb") as log:
        try:
            return subprocess.Popen(
                [interpreter, "-I", str(Path(__file__).with_name("lxt_worker.py")), str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                start_new_session=True,  # an interrupt is for this process, which then ends that one
            )
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise GradELLMError(f"The interpreter {interpreter!r} could not be started: {error}") from error


def _save(model: PreTrainedModel, folder: Path) -> None:
    """Writes the weights as they are. A model that was unpacked when it was loaded still says how it was packed; not here."""
    config, quantizer = dict(vars(model.config)), vars(model).pop("hf_quantizer", None)
    vars(model.config).pop("quantization_config", None)
    try:
        model.save_pretrained(folder)
    finally:
        if quantizer is not None:
            model.hf_quantizer = quantizer
        vars(model.config).clear()
        vars(model.config).update(config)  # saving notes the model's class and dtype in it


def _end(process: "subprocess.Popen[str]", folder: Path) -> None:
    process.kill()
    process.communicate()
    shutil.rmtree(folder, ignore_errors=True)
