"""GPT-2 and its ancestor: one convolution computes query, key and value, side by side."""

from .adapter import ArchitectureAdapter
from .fused import side_by_side

ADAPTER = ArchitectureAdapter(
    model_types=("gpt2", "openai-gpt"),
    decoder_layers="transformer.h",
    attention="attn",
    output_projection="c_proj",
    fused="c_attn",
    split_fused=side_by_side,
)
