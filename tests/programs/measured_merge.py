"""A merge whose peak memory and imports are printed as JSON: the arguments of the command line."""

import json
import resource
import sys


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    import torch  # noqa: F401  # what any merge imports is not counted

    import act_lightning.cli.merge  # noqa: F401

    before = peak()
    from act_lightning.cli import main

    status = main(sys.argv[1:])
    modules = sorted({name.split(".")[0] for name in sys.modules})
    print(json.dumps({"status": status, "peak": peak() - before, "modules": modules}))
