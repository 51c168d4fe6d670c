"""What an explanation returns, and its files.

May import `text`, `images`, `visualization`, `checks`, `configuration`, `errors` and, for the name of the cache,
`architecture`.
"""
