"""XGLM. Its attention scales the queries right after projecting them."""

from .adapter import ArchitectureAdapter

ADAPTER = ArchitectureAdapter(model_types=("xglm",), output_projection="out_proj")
