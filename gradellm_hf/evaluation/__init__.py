"""Methods run on prompts and measured by metrics: `evaluate` does it, `load_evaluation` reads what it wrote.

May import everything below it.
"""

from .measures import METRICS, Metric, Settings
from .results import Evaluation, load_evaluation, merge
from .runner import evaluate
from .summary import Summary, summarise

__all__ = ["METRICS", "Evaluation", "Metric", "Settings", "Summary", "evaluate", "load_evaluation", "merge", "summarise"]
