"""How heatmaps are computed: the formula, its position-local gradients, and the loop that all engines share.

May import `sequences`, `architecture`, `checks`, `configuration` and `errors` only: it knows nothing of text, files or how
results are shown.
"""
