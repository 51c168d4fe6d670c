"""How the processors of each family lay pictures out: one small file each, with a function that returns `View`s.

May import `text`, `checks` and `errors` only.
"""
