"""``python -m fai_fast.ros2``."""

import sys

from fai_fast.ros2.node import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
