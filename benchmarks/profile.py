"""What profiling costs over two bare forward passes on the same batches; see ``bare_forwards.py``, which does the work.

    python benchmarks/profile.py --help

It stands in a file of its own because this one has the name of a module of the standard library, which torch asks for.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path

if __name__ == "__main__":
    from bare_forwards import main

    main()
else:  # a script in this folder, or a library that it uses, means the standard library's
    spec = importlib.util.spec_from_file_location(__name__, Path(sysconfig.get_path("stdlib")) / "profile.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[__name__] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[__name__])
