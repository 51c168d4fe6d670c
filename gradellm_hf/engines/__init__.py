"""How heatmaps are computed: the formula, its position-local gradients, and the loop that all engines share.

May import `sequences`, `architecture` and what is below them; knows nothing of files, text or how results are shown.
"""
