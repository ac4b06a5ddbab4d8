"""``python -m flexora``."""

import sys

from flexora.cli import main

if __name__ == "__main__":
    sys.exit(main())
