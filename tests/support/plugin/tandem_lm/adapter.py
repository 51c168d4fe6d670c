"""The declaration; it imports nothing of the model, as it is loaded before any model is explained."""

from model_patches import ArchitectureAdapter

ADAPTER = ArchitectureAdapter(
    model_types=("tandem",),
    output_projection="merge",
    query="ask",
    key="label",
    value="content",
)
