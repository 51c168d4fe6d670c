"""`python -m gradellm_hf.dataset`: the command `gradellm dataset`, for launchers of several processes."""

import sys

from ..cli import main

if __name__ == "__main__":
    sys.exit(main(["dataset", *sys.argv[1:]]))
