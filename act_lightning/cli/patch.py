"""The verb ``patch``: make, apply, revert and show an ability patch; extract a LoRA adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from act_lightning.checkpoints.lock import lock_output
from act_lightning.checkpoints.models import locate
from act_lightning.cli import PROGRAM, VERBS
from act_lightning.cli.next_step import print_next
from act_lightning.cli.parser_messages import VerbParser
from act_lightning.console import Console, Table, format_bytes
from act_lightning.escaping import terminal_text
from act_lightning.patches.apply import apply_patch, revert_patch
from act_lightning.patches.extract_lora import Extraction, extract_lora
from act_lightning.patches.make import make_patch
from act_lightning.patches.patch_file import PatchFile, find_patch, open_patch, summarize_patch


def main(arguments: Sequence[str]) -> int:
    """Do what follows the verb, and return the exit status.

    Raises:
        ActError: See :mod:`act_lightning.patches`.
    """
    args, console = _parser().parse_args(list(arguments)), Console()
    if args.action == "make":
        base, tuned = locate(args.base, None, "--base"), locate(args.tuned, None, "--tuned")
        with lock_output(args.out, "patch make", "--out"):
            patch = make_patch(base, tuned, args.out, (args.base, args.tuned))
        _print_summary(patch, console)
        applied = args.out.with_name(f"{args.out.stem}-applied")
        print_next("patch", "apply", "--model", args.base, "--patch", args.out, "--out", applied)
    elif args.action == "extract-lora":
        base, tuned = locate(args.base, None, "--base"), locate(args.tuned, None, "--tuned", adapters=True)
        with lock_output(args.out, "patch extract-lora", "--out"):
            extraction = extract_lora(base, tuned, args.rank, args.out, (args.base, args.tuned), args.overwrite)
        _print_extraction(extraction, args.out, console)
        patch_path = args.out.with_name(f"{args.out.name}.safetensors")
        tuned_model = f"{args.base}+{args.out}"
        print_next("patch", "make", "--base", args.base, "--tuned", tuned_model, "--out", patch_path)
    elif args.action == "show":
        patch = open_patch(find_patch(args.patch))
        if args.json:
            print(terminal_text(json.dumps(summarize_patch(patch.record), indent=2, ensure_ascii=False)))
        else:
            _print_summary(patch, console)
            _print_groups(patch, console)
            print_next("patch", "apply", "--model", "MODEL", "--patch", args.patch, "--out", "DIR")
    else:
        model, patches = locate(args.model, None, "--model"), [find_patch(reference) for reference in args.patch]
        change = apply_patch if args.action == "apply" else revert_patch
        with lock_output(args.out, f"patch {args.action}", "--out"):
            digest = change(model, patches, args.out, args.stack, args.model, args.overwrite)
        print(terminal_text(f"model written to {args.out}; digest of its weights {digest}"))
        if args.action == "apply":
            given = [word for patch in args.patch for word in ("--patch", patch)] + ["--stack"] * args.stack
            reverted = args.out.with_name(f"{args.out.name}-reverted")
            print_next("patch", "revert", "--model", args.out, *given, "--out", reverted)
        else:
            print_next("patch", "show", args.patch[0])
    return 0


def _parser() -> VerbParser:
    parser = VerbParser(prog=f"{PROGRAM} patch", description=VERBS["patch"].about)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    about = "Write how a tuned model differs from its base to a file. Weights only: the base keeps its config."
    make = actions.add_parser("make", help=about, description=about)
    make.add_argument("--base", required=True, metavar="DIR", help="Folder, hub id or lab:… of the base.")
    make.add_argument("--tuned", required=True, metavar="DIR", help="The same of the tuned model.")
    make.add_argument("--out", required=True, metavar="FILE", type=Path, help="The patch, a safetensors file.")
    about = "Write how a tuned model differs from its base as a LoRA adapter for PEFT and vLLM, and print its error."
    extract = actions.add_parser("extract-lora", help=about, description=about)
    extract.add_argument("--base", required=True, metavar="DIR", help="Folder, hub id or lab:… of the base.")
    extract.add_argument("--tuned", required=True, metavar="DIR", help="The same of the tuned model.")
    extract.add_argument("--rank", required=True, metavar="R", type=int, help="Rank of each matrix of the adapter.")
    extract.add_argument("--out", required=True, metavar="DIR", type=Path, help="The folder to write.")
    about = "Replace an earlier export in --out; other files are never replaced."
    extract.add_argument("--overwrite", action="store_true", help=about)
    file = "A file, or hf://owner/name/file@revision."
    for action, about in (
        ("apply", "Write the base with patches applied."),
        ("revert", "Write a patched model with its patches removed: the base, to the last bit."),
    ):
        change = actions.add_parser(action, help=about, description=about)
        change.add_argument("--model", required=True, metavar="DIR", help="Folder, hub id or lab:… of the model.")
        order = f"{file} May be repeated, in the order of application."
        change.add_argument("--patch", required=True, action="append", metavar="FILE", help=order)
        change.add_argument("--out", required=True, metavar="DIR", type=Path, help="The folder to write.")
        stack = "Let patches of one base change the same rows; the later one wins."
        change.add_argument("--stack", action="store_true", help=stack)
        about = "Replace an earlier export in --out; other files are never replaced."
        change.add_argument("--overwrite", action="store_true", help=about)
    about = "Print what a patch changes, by layer and module type."
    show = actions.add_parser("show", help=about, description=about)
    show.add_argument("patch", metavar="FILE", help=file)
    show.add_argument("--json", action="store_true", help="Print one JSON object and nothing else.")
    return parser


def _print_summary(patch: PatchFile, console: Console) -> None:
    totals, record = summarize_patch(patch.record), patch.record
    lines = [
        f"{patch.path}: {format_bytes(patch.path.stat().st_size)}",
        f"made from {record.provenance.get('tuned')} over {record.provenance.get('base')}",
        f"changes {totals['changed']:,} of {totals['parameters']:,} elements ({totals['changed_share']:.2%}) "
        f"in {len(record.tensors)} tensors",
        f"fits   {record.base}",
        f"makes  {record.result}",
    ]
    for entry in record.provenance.get("config_differences", ()):
        key, base, tuned = entry["key"], entry["base"], entry["tuned"]
        lines.append(f"not carried: {key} is {base!r} in the base, and {tuned!r} in the tuned model")
    for line in lines:
        console.print(" ".join(line.splitlines()), soft_wrap=True)


def _print_extraction(extraction: Extraction, out: Path, console: Console) -> None:
    table = Table("module type", "norm of the change", "left out", box=None)
    for share in extraction.adapted:
        table.add_row(share.name, f"{share.changed:.4g}", f"{share.error:.2%}")
    for share in extraction.omitted:
        table.add_row(share.name, f"{share.changed:.4g}", "all: no matrix of a Linear in a layer")
    console.print(table)
    error = extraction.to_json()["error"]
    line = f"adapter of rank {extraction.rank} written to {out}; it leaves out {error['adapted']:.2%} of the change"
    console.print(f"{line} of these matrices, {error['whole']:.2%} of the whole (Frobenius norms)", soft_wrap=True)


def _print_groups(patch: PatchFile, console: Console) -> None:
    totals, columns = summarize_patch(patch.record), ("tensors", "rows", "columns", "changed", "elements")
    for group, title in (("by_layer", "layer"), ("by_module_type", "module type")):
        table = Table(title, box=None)
        for column in columns:
            table.add_column(column, justify="right")
        for row in totals[group]:
            table.add_row(row["name"], *(f"{row[column]:,}" for column in columns))
        console.print(table)
