"""What jobs over many prompts share: their prompts, manifest, folder and processes.

May import `architecture`, `checks` and `errors` only.
"""
