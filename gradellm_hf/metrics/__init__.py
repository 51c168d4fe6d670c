"""Metrics that say how faithful explanations are. They take heatmaps, of any method.

May import `sequences`, `results`, `text`, `architecture`, `checks`, `configuration` and `errors` only.
"""

from .ablation import linear_datamodelling_score, top_k_drop
from .agreement import auc, average_precision, pearson_correlation, rank_correlation, token_labels
from .bootstrap import Interval, bootstrap
from .calibration import calibrate
from .insertion_deletion import deletion, insertion
from .known_sources import recall_at_k, reciprocal_rank
from .perturbation import hellinger, joint_hellinger
from .pi_soft import PIS, normalised_area, pi_soft_nc, pi_soft_ns
from .randomisation import weight_randomisation
from .ranks import spearman
from .soft import soft_nc, soft_ns

__all__ = [
    "PIS",
    "Interval",
    "auc",
    "average_precision",
    "bootstrap",
    "calibrate",
    "deletion",
    "hellinger",
    "insertion",
    "joint_hellinger",
    "linear_datamodelling_score",
    "normalised_area",
    "pearson_correlation",
    "pi_soft_nc",
    "pi_soft_ns",
    "rank_correlation",
    "recall_at_k",
    "reciprocal_rank",
    "soft_nc",
    "soft_ns",
    "spearman",
    "token_labels",
    "top_k_drop",
    "weight_randomisation",
]
