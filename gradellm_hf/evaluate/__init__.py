"""Only for `python -m gradellm_hf.evaluate`: `evaluation` does the work, `cli` has the command."""
