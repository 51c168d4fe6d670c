"""Gradio, if it is installed."""

from ..checks.optional import needed_for

with needed_for("The app needs", "gradio"):
    import gradio as gr
    from gradio.events import api

__all__ = ["api", "gr"]
