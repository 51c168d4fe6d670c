"""Measurements of speed and memory, as ratios taken in one process. `make bench` runs them and writes RESULTS.md."""
