"""Learns how much each head counts: `calibrate`. Its prompts, `prompts.jsonl`, ship with the package.

May import `engines`, `metrics`, `sequences`, `jobs`, `architecture`, `text`, `checks`, `configuration` and `errors` only.
"""

from .job import calibrate

__all__ = ["calibrate"]
