"""The app: a chat in the browser whose answers say what they rest on, and an endpoint for other programs.

`engine`, `session`, `documents` and `settings` know nothing of Gradio; `layout`, `handlers` and `launching` are what is shown.
May import everything below it.
"""

from .launching import launch

__all__ = ["launch"]
