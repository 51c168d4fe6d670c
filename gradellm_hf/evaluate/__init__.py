"""The way in for `python -m gradellm_hf.evaluate`, and nothing else: `evaluation` has the work, `cli` the command."""
