"""The command line several times in the processes that torchrun started: a JSON list of lists of arguments."""

import json
import sys

from act_lightning.cli import main

if __name__ == "__main__":
    for arguments in json.loads(sys.argv[1]):
        status = main(arguments)
        assert status == 0, (status, arguments)
