"""A merge that is killed in the midst of its last tensor: OUT TARGET."""

import os
import signal
import sys
from pathlib import Path

from tests.checkpoints.test_streaming import SOME, Doubling, merged


class Killing(Doubling):
    def changes(self, name, read, rows, device):
        yield from super().changes(name, read, rows, device)
        if name == "lm_head.weight":
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    merged(Path(sys.argv[1]), Path(sys.argv[2]), Killing(SOME))


if __name__ == "__main__":
    main()
