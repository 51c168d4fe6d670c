"""Only for `python -m gradellm_hf.evaluate`; the work is in `evaluation`. May import `cli` only."""
