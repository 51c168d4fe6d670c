"""One library on one text: `python -m benchmarks.peers.worker NAME TEXT.json MODEL`, in the environment of the library.

Prints one line of JSON: how long generating takes, how long explaining takes, and how much memory it needs more than there was
before. All explain the text that TEXT.json holds, as token ids; ContextCite writes its own answer of that length.
"""

import importlib
import importlib.util
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from ..measuring import PeakMemory

_ROOT = Path(__file__).resolve().parents[2]
_EAGER = ("inseq_attention",)  # reads the attention weights that only eager attention returns
_QUICK, _REPETITIONS = 20.0, 3  # runs of fewer seconds are repeated, and the medians taken
Ids = list[int]
#: From prompt and target to the number of vectors of scores.
Run = Callable[[Ids, Ids], int]


def grad_ellm(model: Any, tokenizer: Any) -> Run:
    from gradellm_hf import explain_sequences

    return lambda prompt, target: explain_sequences(model, torch.tensor([prompt + target]), len(prompt)).attributions.shape[1]


def grad_ellm_generate(model: Any, tokenizer: Any) -> Run:
    from gradellm_hf import explain_generate

    def run(prompt: Ids, target: Ids) -> int:
        return explain_generate(model, torch.tensor([prompt]), **_length(len(target))).attributions.shape[1]

    return run


def inseq_saliency(model: Any, tokenizer: Any, method: str = "saliency") -> Run:
    from gradellm_hf.methods import inseq_method

    explain = inseq_method(method)
    return lambda prompt, target: explain(model, torch.tensor([prompt + target]), len(prompt)).shape[1]


def inseq_attention(model: Any, tokenizer: Any) -> Run:
    return inseq_saliency(model, tokenizer, "attention")


def captum_gradient(model: Any, tokenizer: Any) -> Run:
    captum = importlib.import_module("captum.attr")
    explainer = captum.LLMGradientAttribution(captum.LayerGradientXActivation(model, model.get_input_embeddings()), tokenizer)

    def run(prompt: Ids, target: Ids) -> int:
        text = captum.TextTokenInput(tokenizer.decode(prompt), tokenizer)
        found = explainer.attribute(text, target=torch.tensor(target))
        return int(found.token_attr.shape[0])

    return run


def lxt_attnlrp(model: Any, tokenizer: Any) -> Run:
    from safetensors.torch import save_file

    def run(prompt: Ids, target: Ids) -> int:
        ids = torch.tensor([prompt + target])
        text = {"token_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.arange(ids.shape[1])[None]}
        save_file(text, os.path.join(model.lxt.folder, "text.safetensors"))
        model.lxt.explain(len(target))
        return len(target)

    return run


def interpreto_saliency(model: Any, tokenizer: Any, method: str = "Saliency") -> Run:
    interpreto: Any = importlib.import_module("interpreto")
    explainer = getattr(interpreto, method)(model, tokenizer, batch_size=8, granularity=interpreto.Granularity.TOKEN)

    def run(prompt: Ids, target: Ids) -> int:
        found = explainer.explain(tokenizer.decode(prompt), tokenizer.decode(target))
        return int(found[0].attributions.shape[0])

    return run


def interpreto_occlusion(model: Any, tokenizer: Any) -> Run:
    return interpreto_saliency(model, tokenizer, "Occlusion")


def flash_trace(model: Any, tokenizer: Any) -> Run:
    from gradellm_hf.methods import flash_trace as method

    explain = method()
    return lambda prompt, target: explain(model, torch.tensor([prompt + target]), len(prompt)).shape[1]


def flash_trace_span(model: Any, tokenizer: Any) -> Run:
    from gradellm_hf.methods.flashtrace_adapter import traced_routes

    def run(prompt: Ids, target: Ids) -> int:
        half = len(prompt) + max(1, len(target) // 2)  # the first half is what is traced through
        traced_routes(model, torch.tensor([prompt + target]), len(prompt), half, hops=1)
        return 1

    return run


def context_cite(model: Any, tokenizer: Any) -> Run:
    library: Any = importlib.import_module("context_cite")
    parts: Any = importlib.import_module("context_cite.context_partitioner")
    query = "Tell me about this."

    class Sentences(parts.SimpleContextPartitioner):  # type: ignore[misc]
        """Its own sentences need data that nltk downloads."""

        def split_context(self) -> None:
            found = list(re.finditer(r"\S.*?(?:[.!?](?=\s)|$)", self.context, re.DOTALL))
            ends = [0, *(sentence.end() for sentence in found)]
            self._cache["parts"] = [sentence[0] for sentence in found]
            self._cache["separators"] = [self.context[end : after.start()] for end, after in zip(ends, found)]

    def citer(context: Ids, target: Ids) -> Any:
        text = tokenizer.decode(context)
        options = {"generate_kwargs": _length(len(target)), "num_ablations": 64, "batch_size": 8}
        return library.ContextCiter(model, tokenizer, text, query, partitioner=Sentences(text), **options)

    def run(prompt: Ids, target: Ids) -> int:
        frame = len(citer(prompt, target)._get_prompt_ids()) - len(prompt)  # template and query
        made = citer(prompt[: max(8, len(prompt) - frame)], target)
        with _not_counted():
            made.response  # noqa: B018  it writes the answer when it is first asked for
        made.get_attributions(as_dataframe=False, verbose=False)
        return 1

    return run


class _Clock:
    """Seconds of the clock and of the processor that count, without those of what is not explaining."""

    def __init__(self) -> None:
        self.left_out = (0.0, 0.0)

    def measure(self, run: Callable[[], int]) -> tuple[float, float, int]:
        self.left_out = (0.0, 0.0)
        start = time.perf_counter(), time.process_time()
        found = run()
        return time.perf_counter() - start[0] - self.left_out[0], time.process_time() - start[1] - self.left_out[1], found


_clock = _Clock()


class _not_counted:  # noqa: N801  reads as a function
    def __enter__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        more = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
        _clock.left_out = (_clock.left_out[0] + more[0], _clock.left_out[1] + more[1])


def _length(num_steps: int) -> dict[str, Any]:
    return {"max_new_tokens": num_steps, "min_new_tokens": num_steps, "do_sample": False}


def _load(name: str, folder: str) -> tuple[Any, Any]:
    """Model and tokenizer; LXT needs none, and its Transformers cannot read that of a later one."""
    if name != "lxt_attnlrp":
        options = {"attn_implementation": "eager"} if name in _EAGER else {}
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
        return model, transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    path = _ROOT / "gradellm_hf" / "methods" / "lxt_worker.py"  # by itself: the package needs a later Transformers
    spec: Any = importlib.util.spec_from_file_location("lxt_worker", path)
    code: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    work = tempfile.mkdtemp()
    shutil.copytree(folder, os.path.join(work, "model"))
    explainer = code.Explainer(work)
    explainer.start(torch.get_num_threads())
    explainer.load("float32", "cpu")
    explainer.model.lxt = explainer
    return explainer.model, None


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    name, text, folder = sys.argv[1:]
    prompt, target = (json.loads(Path(text).read_text(encoding="utf-8"))[part] for part in ("prompt", "target"))
    model, tokenizer = _load(name, folder)
    run = globals()[name](model, tokenizer)
    run(prompt[:16], target[:2])  # warms up

    def generate() -> int:
        with torch.no_grad():
            return len(model.generate(torch.tensor([prompt]), **_length(len(target)))[0])

    generated, explained, more_memory = [], [], 0.0
    while not explained or (len(explained) < _REPETITIONS and max(generated[0][0], explained[0][0]) < _QUICK):
        generated.append(_clock.measure(generate))
        with PeakMemory(interval=0.05) as memory:
            explained.append(_clock.measure(lambda: run(prompt, target)))
        more_memory = max(more_memory, (memory.peak - memory.before) / 2**20)
    less = generated if name == "grad_ellm_generate" else [(0.0, 0.0, 0)] * len(explained)
    seconds, cpu = (statistics.median(a[i] - b[i] for a, b in zip(explained, less)) for i in (0, 1))
    generate_seconds, generate_cpu = (statistics.median(a[i] for a in generated) for i in (0, 1))
    print(
        json.dumps(
            {
                "generate_seconds": generate_seconds,
                "generate_cpu_seconds": generate_cpu,
                "seconds": seconds,
                "cpu_seconds": cpu,
                "vectors": explained[0][2],
                "more_mib": more_memory,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
