"""``python -m flexora``."""

import sys

from flexora.cli import main

sys.exit(main())
