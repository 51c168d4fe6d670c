"""GPT-Neo, whose attention module is inside another that chooses between global and local attention."""

from .adapter import ArchitectureAdapter

ADAPTER = ArchitectureAdapter(
    model_types=("gpt_neo",), decoder_layers="transformer.h", attention="attn.attention", output_projection="out_proj"
)
