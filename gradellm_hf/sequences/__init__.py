"""What the engines explain: token sequences, given or read off a call of `generate`.

May import `architecture`, `checks`, `configuration` and `errors` only.
"""
