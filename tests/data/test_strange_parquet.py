"""Parquet files of a few kilobytes that hold gigabytes: refused, or read in little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from act_lightning.data.files import FileRows
from act_lightning.errors import ActError

PEAK = """
import resource, sys
from itertools import islice
from act_lightning.data.files import FileRows
import pyarrow.parquet, pyarrow.compute
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = [row for _, row in islice(FileRows([sys.argv[1]], "data.abilities.a"), 1)]
assert len(rows) == 1
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def repeated(path: Path, column: str, value: Any, rows: int = 1024) -> Path:
    """A file whose rows all repeat one value, which it stores once."""
    indices, values = pa.array([0] * rows, pa.int32()), pa.array([value])
    if isinstance(value, str):
        table = pa.table({column: pa.DictionaryArray.from_arrays(indices, values)})
    else:
        table = pa.table({column: values.take(indices)})
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 30, store_schema=False)
    return path


@pytest.mark.parametrize("nested", [False, True])
def test_a_row_takes_the_memory_of_a_row(nested: bool, tmp_path: Path) -> None:
    text = "x" * 1_000_000
    value: Any = [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}] if nested else text
    path = repeated(tmp_path / "a.parquet", "messages" if nested else "answer", value, 600)
    assert path.stat().st_size < 10_000
    command = [sys.executable, "-c", PEAK, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert int(result.stdout) < 300, "600 rows at once take 600 MB, and as much again in Python"


def test_a_column_that_expands_without_measure_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.parquet"
    pq.write_table(pa.table({"answer": ["y" * 300_000_000]}), path, compression="zstd", use_dictionary=False)
    with pytest.raises(ActError, match=r"b\.parquet, row group 0 = 'answer'.* bytes expand to.*smaller row groups"):
        next(iter(FileRows([str(path)], "data.abilities.a")))


def test_ordinary_files_are_read_row_by_row(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"{i}?"}], "n": i, "f": i / 7, "none": None} for i in range(3000)]
    for name, options in (("plain", {"use_dictionary": False}), ("coded", {}), ("groups", {"row_group_size": 700})):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, **options)
        located = list(FileRows([str(path)], "data.abilities.a"))
        assert [row for _, row in located] == pq.read_table(path).to_pylist()
        assert located[1500][0] == f"{path} row 1501"


def test_damaged_metadata_does_not_end_the_process(tmp_path: Path) -> None:
    """The library aborts where a column's histogram of levels has another length than its type asks for."""
    path, rows = tmp_path / "a.parquet", [{"messages": [{"role": "user", "content": "a"}]}] * 3
    pq.write_table(pa.Table.from_pylist(rows), path)
    content, refusals = path.read_bytes(), []
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    two_numbers, six_numbers = b"\x26", b"\x66"  # lists of int64 in Thrift's compact protocol
    for start in (at for at in range(footer, len(content)) if content[at : at + 1] == two_numbers):
        path.write_bytes(content[:start] + six_numbers + content[start + 1 :])
        try:
            list(FileRows([str(path)], "data.abilities.a"))
        except ActError as error:
            refusals.append(str(error))
    assert any("a.parquet" in text and "the metadata of its columns is damaged" in text for text in refusals)
