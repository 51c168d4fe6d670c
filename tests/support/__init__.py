"""What several tests share, and the attack: `python -m tests.support.attack`."""
