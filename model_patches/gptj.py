"""GPT-J."""

from .adapter import ArchitectureAdapter

ADAPTER = ArchitectureAdapter(
    model_types=("gptj",), decoder_layers="transformer.h", attention="attn", output_projection="out_proj"
)
