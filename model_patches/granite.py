"""Granite, dense and mixture-of-experts. Its multipliers act on scores and residuals, outside of what is named here."""

from .adapter import ArchitectureAdapter

ADAPTER = ArchitectureAdapter(model_types=("granite", "granite_swa", "granitemoe", "granitemoeshared", "granitemoe_swa"))
