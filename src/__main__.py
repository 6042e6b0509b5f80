"""`python -m src` is the command `parley`."""

import sys

from src.cli import main

if __name__ == "__main__":
    sys.exit(main())
