"""What head weights are calibrated on: `prompts.jsonl`, which ships with the package. May import `jobs` and what it imports."""
