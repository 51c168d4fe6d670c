"""`GradELLM`, a model that explains what it writes: text in, explanations out.

May import everything below it.
"""

from .wrapper import GradELLM

__all__ = ["GradELLM"]
