"""Other libraries beside this one: the same model, the same text, one run. `make bench-peers`."""
