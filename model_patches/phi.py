"""Phi 1 to 4: separate projections at first, one fused projection from Phi-3 on, separate ones in the mixture of experts."""

from .adapter import ArchitectureAdapter
from .fused import side_by_side_grouped

PHI = ArchitectureAdapter(model_types=("phi",), output_projection="dense")
PHI3 = ArchitectureAdapter(model_types=("phi3",), fused="qkv_proj", split_fused=side_by_side_grouped)
PHIMOE = ArchitectureAdapter(model_types=("phimoe",))
