"""``python -m act_lightning``."""

import sys

from act_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
