"""Run docs/tutorial.ipynb and keep what it shows.

    python scripts/tutorial.py

It runs in an empty folder, with the laboratory of the cache. Progress bars and warnings (standard error) are not kept,
nor are times and versions, so that a new run changes the file only where results change.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tutorial.ipynb"
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # ipykernel asks every program for them


def executed(path: Path, folder: Path) -> Any:  # noqa: ANN401 - a notebook, for which nbformat has no type
    """A notebook with what its cells show when they run in ``folder``.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment, cwd=str(folder))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = shown(cell.outputs)
    notebook.metadata = {"kernelspec": notebook.metadata.get("kernelspec", {}), "language_info": {"name": "python"}}
    return notebook


def shown(outputs: list[Any]) -> list[Any]:
    """Outputs without those on standard error and without colors, and what was printed piece by piece as one."""
    kept: list[Any] = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if kept and output.get("name") == "stdout" == kept[-1].get("name"):
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if "text" in output:
            output.text = _ANSI.sub("", output.text)
    return kept


if __name__ == "__main__":
    with TemporaryDirectory() as root:
        result = executed(NOTEBOOK, Path(root))
    nbformat.write(result, NOTEBOOK)
    print(f"written to {NOTEBOOK}")
