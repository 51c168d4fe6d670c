"""gpt-oss: attention sinks come to the attention function as an argument of their own."""

from .adapter import ArchitectureAdapter

ADAPTER = ArchitectureAdapter(model_types=("gpt_oss",))
