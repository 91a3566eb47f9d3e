"""The verb ``env``: versions, machine, storage and variables, for a bug report; without secrets."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import act_lightning
from act_lightning.cli import PROGRAM, VERBS
from act_lightning.cli.parser_messages import VerbParser
from act_lightning.defaults import cache_folder
from act_lightning.escaping import terminal_text
from act_lightning.redaction import REDACTED, redact

PACKAGES = (
    *("torch", "lightning", "transformers", "torchmetrics", "datasets", "bitsandbytes", "jsonargparse", "safetensors"),
    *("huggingface_hub", "jinja2", "pyarrow", "rich", "tqdm", "filelock", "pyyaml", "numpy", "pandas", "matplotlib"),
    *("optuna", "tensorboard", "tokenizers", "triton", "accelerate", "openai", "py3langid", "vllm", "torchao", "gguf"),
    *("lightning-utilities", "flash-attn", "deepspeed", "wandb", "mlflow"),
)
"""What the package needs, and what its runs may use."""
_VARIABLE = re.compile(
    r"(ACT_LIGHTNING|CUDA|HF|HUGGING_?FACE|TRANSFORMERS|TOKENIZERS|DATASETS|TORCH|PYTORCH|TORCHINDUCTOR|TRITON|NCCL|GLOO"
    r"|OMP|MKL|OPENBLAS|PL|WANDB|XDG_CACHE|SLURM|JSONARGPARSE|PYTHON|LD_LIBRARY_PATH|LD_PRELOAD)(_|[A-Z]|$).*"
    r"|(MASTER_ADDR|MASTER_PORT|NODE_RANK|LOCAL_RANK|GROUP_RANK|RANK|WORLD_SIZE|TMPDIR|(HTTPS?|ALL|NO)_PROXY"
    r"|VIRTUAL_ENV|CONDA_PREFIX)"
)
_MOUNTS = Path("/proc/self/mounts")
_HOME = re.compile(rf"{re.escape(str(Path.home()))}(?=/|$)")


def main(arguments: Sequence[str]) -> int:
    """Print what describes this machine and what is installed, and return the exit status."""
    parser = VerbParser(prog=f"{PROGRAM} env", description=VERBS["env"].about)
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.parse_args(list(arguments))
    content = {section: dict(entries) for section, entries in _sections()}
    if args.json:
        print(terminal_text(json.dumps(content, indent=2, ensure_ascii=False)))
        return 0
    for section, entries in content.items():
        print(f"{section}:")
        for name, value in entries.items():
            print(terminal_text(f"  {name:<26} {value}".rstrip()))
    return 0


def _sections() -> Iterator[tuple[str, Iterator[tuple[str, str]]]]:
    yield "packages", _versions()
    yield "machine", _machine()
    yield "devices", _devices()
    yield "storage", _storage()
    yield "variables", _variables()


def _versions() -> Iterator[tuple[str, str]]:
    """Of the interpreter, this package, and all others that are installed."""
    yield "act-lightning", act_lightning.__version__
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    missing = []
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            missing.append(name)
    yield "not installed", ", ".join(missing) or "none"


def _machine() -> Iterator[tuple[str, str]]:
    yield "system", platform.platform()
    yield "processor", f"{platform.machine()}, {_usable_cores()} of {os.cpu_count()} cores usable"
    if "SC_PHYS_PAGES" in os.sysconf_names:
        yield "memory", _gigabytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    yield "terminal", f"{shutil.get_terminal_size().columns} columns, {sys.stdout.encoding}"


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _devices() -> Iterator[tuple[str, str]]:
    """Accelerators as torch sees them; or why torch cannot be imported, which may be what is to be reported."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield "torch", f"cannot be imported: {error}"
        return
    yield "built for CUDA", str(torch.version.cuda)
    yield "built for ROCm", str(torch.version.hip)
    if not torch.accelerator.is_available():
        yield "accelerators", "none"
        return
    for index in range(torch.accelerator.device_count()):
        kind, about = torch.accelerator.current_accelerator(), ""
        if torch.cuda.is_available():
            device = torch.cuda.get_device_properties(index)
            about = f" {device.name}, {_gigabytes(device.total_memory)}, capability {device.major}.{device.minor}"
        yield f"{kind}:{index}", about.strip() or str(kind)
    if torch.cuda.is_available() and torch.distributed.is_nccl_available():
        yield "NCCL", ".".join(map(str, torch.cuda.nccl.version()))


def _storage() -> Iterator[tuple[str, str]]:
    """Where files go that no run names, the type of file system there, and what is free."""
    huggingface = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    places = {
        "this package's cache": cache_folder("data").parent,
        "Hugging Face's cache": huggingface,
        "temporary files": Path(tempfile.gettempdir()),
        "working folder": Path(),
    }
    for name, folder in places.items():
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        try:
            free = f"{_gigabytes(shutil.disk_usage(existing).free)} free"
        except OSError as error:
            free = str(error.strerror)
        writable = "" if os.access(existing, os.W_OK) else ", not writable"
        yield name, f"{_shorten(str(folder.absolute()))} ({_file_system(existing)}, {free}{writable})"


def _file_system(folder: Path) -> str:
    """The type of the file system that a folder lies on, such as ext4 or nfs, which decides what its locks are worth.

    >>> _file_system(Path("/proc/self")) if _MOUNTS.is_file() else "proc"
    'proc'
    """
    try:
        mounts = [line.split() for line in _MOUNTS.read_text().splitlines()]
    except OSError:
        return "unknown file system"
    real = folder.resolve()
    types = {Path(mount[1].replace("\\040", " ")): mount[2] for mount in mounts}
    return next((types[path] for path in (real, *real.parents) if path in types), "unknown file system")


def _variables() -> Iterator[tuple[str, str]]:
    """Variables that change what a run does, without their secrets; of a proxy only that there is one."""
    for name, value in sorted(os.environ.items()):
        if _VARIABLE.fullmatch(name.upper()):
            hidden = "@" in value or (name.upper().endswith("_PROXY") and name.upper() != "NO_PROXY")
            yield name, REDACTED if hidden else _shorten(str(redact(value, name)))


def _shorten(text: str) -> str:
    """Paths below the home folder begin with ``~``, since they would name the user."""
    return _HOME.sub("~", text)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
