"""GPT-NeoX (Pythia) and its Japanese sister, which differ in the name of the inner model."""

from dataclasses import replace

from .adapter import ArchitectureAdapter
from .fused import head_by_head

GPT_NEOX = ArchitectureAdapter(
    model_types=("gpt_neox",),
    decoder_layers="gpt_neox.layers",
    attention="attention",
    output_projection="dense",
    fused="query_key_value",
    split_fused=head_by_head,
)
GPT_NEOX_JAPANESE = replace(GPT_NEOX, model_types=("gpt_neox_japanese",), decoder_layers="gpt_neox_japanese.layers")
