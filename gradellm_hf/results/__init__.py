"""What an explanation returns, and its files.

May import `text`, `visualization`, `checks`, `configuration`, `errors` and, for the name of the cache, `architecture`.
"""
