"""What to explain and how, `GradELLMConfig`, and how much each head counts, `HeadWeights`.

May import `checks` and `errors` only.
"""

from .config import GradELLMConfig, Target, TargetFunction, checked_config, foil_ids, stored_config
from .head_weights import HeadWeights

__all__ = ["GradELLMConfig", "HeadWeights", "Target", "TargetFunction", "checked_config", "foil_ids", "stored_config"]
