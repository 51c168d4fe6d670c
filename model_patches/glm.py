"""GLM-4 in its versions. The lite mixture of experts has latent attention, like DeepSeek."""

from dataclasses import replace

from .adapter import ArchitectureAdapter
from .deepseek import DEEPSEEK

GLM = ArchitectureAdapter(model_types=("glm", "glm4", "glm4_moe"))
GLM_LITE = replace(DEEPSEEK, model_types=("glm4_moe_lite",))
