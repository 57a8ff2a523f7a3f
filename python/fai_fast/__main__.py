"""``python -m fai_fast``: the command line, where ``fai-fast`` is not on the path."""

import sys

from fai_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
