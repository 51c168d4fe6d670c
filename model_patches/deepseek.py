"""DeepSeek V2 and V3. Keys and values are expanded from one latent vector per token: no module puts them out as they are."""

from .adapter import ArchitectureAdapter

DEEPSEEK = ArchitectureAdapter(model_types=("deepseek_v2", "deepseek_v3", "deepseek_v32"), query=None, key=None, value=None)
