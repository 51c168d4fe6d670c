"""Everything that depends on the model at hand: its modules, cache, devices, dtype and hooks.

May import `model_patches`, `checks`, `configuration` and `errors` only.
"""
