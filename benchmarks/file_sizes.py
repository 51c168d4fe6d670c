"""`python -m benchmarks.file_sizes`: what files and reports of a long text weigh, with all scores and with the strongest."""

import tempfile
from pathlib import Path
from typing import Any

from gradellm_hf import GradELLM, GradELLMConfig
from gradellm_hf.demo_model import load_smollm2

_TEXT = Path(__file__).resolve().parent.parent / "docs"
_FORMS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float16": {"score_dtype": "float16"},
    '`keep="top"`, float32': {"keep": "top"},
    '`keep="top"`, float16': {"keep": "top", "score_dtype": "float16"},
    "`keep=32`, float16": {"keep": 32, "score_dtype": "float16"},
    "`keep=8`, float16": {"keep": 8, "score_dtype": "float16"},
}


def given_text(tokenizer: Any, prompt_length: int, num_steps: int) -> tuple[str, str]:
    """Prompt and answer of about so many tokens, from the documentation."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(_TEXT.glob("*.md")))
    ids = tokenizer(text)["input_ids"][: prompt_length + num_steps]
    return tokenizer.decode(ids[:prompt_length]), tokenizer.decode(ids[prompt_length:])


def file_sizes_row(prompt_length: int = 100, num_steps: int = 2000) -> tuple[str, str, str]:
    """A row of the results: what was measured, the figures, no target. The text is that of the documentation, as given text."""
    model, tokenizer = load_smollm2()
    whole = GradELLM(model, tokenizer, GradELLMConfig()).explain(*given_text(tokenizer, prompt_length, num_steps))
    compact = whole.compact()
    with tempfile.TemporaryDirectory() as folder:
        sizes = {}
        for name, options in _FORMS.items():
            path = Path(folder) / "a.safetensors"
            whole.save(path, **options)
            sizes[name] = path.stat().st_size
    sizes["report"], sizes['report of `compact("top")`'] = len(whole.to_html()), len(compact.to_html())
    kept = compact.attributions.count_nonzero().item() / len(compact.attributions)
    share = (compact.attributions.sum() / whole.attributions.sum()).item()
    figures = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sizes.items())
    return (
        f"size of a file of N={len(whole.attributions)}, S={len(whole.tokens)} (our documentation), all layers summed",
        f"{figures}; top keeps {kept:.0f} scores a step, which hold {100 * share:.0f} % of all",
        "",
    )


if __name__ == "__main__":
    what, measured, _ = file_sizes_row()
    print(f"{what}: {measured}")
