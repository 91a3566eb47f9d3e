"""The verb ``dequantize``: write a checkpoint of fp8 blocks or mxfp4 as plain weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from act_lightning.checkpoints.dequantize import dequantize
from act_lightning.checkpoints.lock import lock_output
from act_lightning.checkpoints.models import locate, resolve_dtype
from act_lightning.cli import PROGRAM, VERBS
from act_lightning.cli.next_step import print_next
from act_lightning.cli.parser_messages import VerbParser
from act_lightning.escaping import terminal_text


def main(arguments: Sequence[str]) -> int:
    """Write the plain checkpoint, given what follows the verb, and return the exit status.

    Raises:
        ActError: As :func:`~act_lightning.checkpoints.dequantize.dequantize`.
    """
    parser = VerbParser(prog=f"{PROGRAM} dequantize", description=VERBS["dequantize"].about)
    parser.add_argument("--model", required=True, metavar="DIR", help="Folder or hub id of the quantized model.")
    dtypes = ("bfloat16", "float16", "float32")
    parser.add_argument("--dtype", required=True, choices=dtypes, help="The precision of what was quantized.")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="The folder to write.")
    about = "Replace an earlier export in --out; other files are never replaced."
    parser.add_argument("--overwrite", action="store_true", help=about)
    args = parser.parse_args(list(arguments))
    model = locate(args.model, None, "--model")
    with lock_output(args.out, "dequantize", "--out"):
        counts = dequantize(model, args.out, resolve_dtype(args.dtype, model, "--dtype"), args.overwrite)
    kinds = " and ".join(f"{count:,} tensors of {kind}" for kind, count in counts.items() if count) or "nothing"
    print(terminal_text(f"model written to {args.out}: {kinds} as {args.dtype}"))
    print_next("plan", "--config", "FILE", "--model.target", args.out)
    return 0
