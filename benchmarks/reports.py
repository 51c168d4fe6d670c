"""`python -m benchmarks.reports`: what reports of long texts weigh, and how long Chromium takes to open them."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from gradellm_hf import Explanation, GradELLM, GradELLMConfig
from gradellm_hf.demo_model import load_smollm2
from tests.support.chromium import chromium

from .file_sizes import given_text

#: Prompt and generated tokens, whether each layer has a heatmap, and the target.
_SHAPES = ((12, 5000, False, "<= 4 MB, < 2 s"), (100, 2000, True, "<= 6 MB"))


def report_rows(repetitions: int = 3) -> list[tuple[str, str, str]]:
    """Rows of the results: what was measured, the figures, the target. The text is that of the documentation, as given text."""
    model, tokenizer = load_smollm2()

    def explained(prompt_length: int, num_steps: int, by_layer: bool) -> Explanation:
        explainer = GradELLM(model, tokenizer, GradELLMConfig(output_layer_attributions=by_layer))
        return explainer.explain(*given_text(tokenizer, prompt_length, num_steps))

    rows = []
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        for prompt_length, num_steps, by_layer, target in _SHAPES:
            path = Path(folder) / "report.html"
            path.write_text(explained(prompt_length, num_steps, by_layer).to_html(), encoding="utf-8")
            opened = statistics.median(_seconds_until_ready(browser, path) for _ in range(repetitions))
            layers = "all layers one by one" if by_layer else "all layers summed"
            figures = f"{path.stat().st_size / 1e6:.2f} MB, opens in {opened:.2f} s"
            rows.append((f"report of P={prompt_length}, N={num_steps} (our documentation), {layers}", figures, target))
    return rows


def _seconds_until_ready(browser: Any, path: Path) -> float:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(path.as_uri())
    page.wait_for_selector("gradellm-report[data-ready]")
    milliseconds: float = page.evaluate("performance.getEntriesByName('ready')[0].startTime")
    page.close()
    return milliseconds / 1000


if __name__ == "__main__":
    for what, measured, _ in report_rows():
        print(f"{what}: {measured}")
