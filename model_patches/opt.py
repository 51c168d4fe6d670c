"""OPT. Its attention scales the queries right after projecting them."""

from .adapter import ArchitectureAdapter

ADAPTER = ArchitectureAdapter(model_types=("opt",), decoder_layers="model.decoder.layers", output_projection="out_proj")
