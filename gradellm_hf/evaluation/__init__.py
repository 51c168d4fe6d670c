"""Methods run on prompts and measured by metrics: `evaluate` does it, `load_evaluation` reads what it wrote.

May import everything below it.
"""

from .known_sources import contradictions, injections, needles
from .measures import METRICS, Metric, Settings
from .results import Evaluation, load_evaluation, merge
from .runner import evaluate
from .summary import Summary, summarise

__all__ = [
    "METRICS",
    "Evaluation",
    "Metric",
    "Settings",
    "Summary",
    "contradictions",
    "evaluate",
    "injections",
    "load_evaluation",
    "merge",
    "needles",
    "summarise",
]
