"""Gradio, if it is installed."""

from ..checks.optional import needed_for

with needed_for("The app needs", "gradio"):
    import gradio as gr

__all__ = ["gr"]
