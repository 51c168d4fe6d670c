"""What the jobs over many prompts share: reading prompts, the manifest, processes.

May import `architecture`, `checks` and `errors` only.
"""
