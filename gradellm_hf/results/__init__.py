"""What an explanation returns, and its files.

May import `text`, `visualization`, `checks`, `configuration` and `errors` only.
"""
