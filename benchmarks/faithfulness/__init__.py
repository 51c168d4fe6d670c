"""Faithfulness of Grad-ELLM and of what it competes with, measured on prompts of our own."""
