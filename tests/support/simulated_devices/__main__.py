"""`python -m tests.support.simulated_devices`: builds them; fails if they should build and do not."""

import sys

from . import build, why_not_here

if (reason := why_not_here()) is None:
    build()
else:
    print(f"Not built: {reason}.", file=sys.stderr)
