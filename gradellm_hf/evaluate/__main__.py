"""`python -m gradellm_hf.evaluate`: the command `gradellm evaluate`, for launchers of several processes."""

import sys

from ..cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
