"""Verbs that are ended at any moment, or whose disk is full: is anything lost, and does the next start go on?

    PYTHONPATH=. python benchmarks/drills.py kill                       # SIGKILL, SIGTERM and Ctrl-C twice, in turn
    PYTHONPATH=. python benchmarks/drills.py kill --verbs fit --moments 300 --signals SIGKILL
    PYTHONPATH=. python benchmarks/drills.py disk                       # as root: a tmpfs of every size

Every trial begins with a copy of one folder, in which every verb has run; the verb runs again there, with another seed
or ratio and ``--overwrite``. ``kill``: at moments spread evenly over the time that an undisturbed run takes. ``disk``:
with room for a share of what an undisturbed run writes. Then it is checked that

- no traceback was printed, and a full disk ends in a message that names a file;
- every file is one that was there before, or one that the undisturbed run writes, whole; no model is missing;
- the same holds after a start that fails at once;
- the verb ends well when it is started again, with the model of the undisturbed run, and nothing temporary stays.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import yaml

from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["act_lightning.cli.lightning_cli", "act_lightning.sweep.finalize", "tests.tiny"])
SECONDS = 300
LARGE = 64 << 20
# Files whose content depends on when and how often a run was started.
LOGS = re.compile(r"(^|/)(logs|report)/|README\.md$|\.act_lightning\.json$|config\.yaml$|\.(log|png|svg|html)$")
VERBS: dict[str, list[str]] = {
    "profile": ["--data.abilities.d.limit", "20"],
    "merge": ["--transfer.ratio", "0.2", "--overwrite"],
    "merge, scores saved": ["--transfer.scores", "{root}/scores", "--transfer.ratio", "0.2", "--overwrite"],
    "fit": ["--seed_everything", "7", "--overwrite"],
    "test": ["--model.target", "{root}/merged"],
    "predict": ["--model.target", "{root}/merged"],
    "validate": ["--data.validation", "0.2"],
    "sweep": ["--sweep.scales", "0.4", "--sweep.ratios", "0.1,0.2,0.3", "--sweep.methods", "act"],
    "causes": ["--causes.samples", "8"],
    "report": [],
    "card": [],
    "patch make": ["--base", "{place}/target", "--tuned", "{root}/merged", "--out", "{root}/p.safetensors"],
    "patch apply": ["--model", "{place}/target", "--patch", "{place}/patch", "--out", "{root}/patched", "--overwrite"],
}


@dataclass(frozen=True)
class Ending:
    """How a start ended: its status, negative where a signal has ended it; what it printed; and its seconds."""

    status: int
    text: str
    seconds: float


def main() -> None:
    """Run a drill, print a line for every verb, and exit with status 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drill", choices=("kill", "disk"))
    parser.add_argument("--verbs", default=",".join(VERBS).replace("merge, ", "merge; "), help="separated by commas")
    parser.add_argument("--moments", type=int, default=30, help="moments, or sizes, of every verb")
    parser.add_argument("--signals", default="SIGKILL,SIGTERM,SIGINT", help="one after the other; SIGINT comes twice")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="drill-") as folder:
        place = Path(folder)
        prepare(place)
        failures = 0
        for verb in [verb.replace("; ", ", ") for verb in options.verbs.split(",")]:
            failures += drill(place, verb, options)
    raise SystemExit(failures > 0)


def prepare(place: Path) -> None:
    """Models, data, a config, and a folder in which every verb has run."""
    target = tiny_model("llama")
    save_model(target, tiny_tokenizer(), place / "target")
    save_model(sibling_of(target, seed=1), tiny_tokenizer(), place / "source")
    rows = [{"prompt": f"ask {i}", "answer": "one two " * (1 + 7 * i % 5)} for i in range(48)]
    write_jsonl(place / "d.jsonl", rows)
    items = write_jsonl(place / "w.jsonl", [{"prompt": f"Say {i}", "answer": "one"} for i in range(6)])
    sets = {role: {"path": str(items), "role": role, "max_new_tokens": 3} for role in ("keep", "recover")}
    saved = {"class_path": "act_lightning.callbacks.LastCheckpoint", "init_args": {"every_n_updates": 1}}
    trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "accumulate_grad_batches": 2, "callbacks": [saved]}
    config = {
        "model": {"target": str(place / "target"), "learning_rate": 1.0e-3},
        "data": {
            "abilities": {"d": {"path": str(place / "d.jsonl"), "limit": 40}},
            "evaluations": sets,
            "batch_size": 4,
        },
        "profile": {"sources": [{"model": str(place / "source"), "abilities": ["d"], "name": "s"}]},
        "transfer": {"ratio": 0.1},
        "trainer": trainer | {"enable_progress_bar": False, "enable_model_summary": False},
    }
    (place / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    root = place / "before"
    earlier: dict[str, list[str]] = {verb: [] for verb in ("profile", "merge", "fit", "test", "predict")}
    earlier |= {"causes": VERBS["causes"], "report": [], "card": [], "patch make": VERBS["patch make"]}
    earlier |= {"sweep": [option.split(",")[0] for option in VERBS["sweep"]], "patch apply": VERBS["patch apply"]}
    for verb, options in earlier.items():
        if verb == "patch apply":
            (root / "p.safetensors").rename(place / "patch")
        ending = start(place, root, verb, options)
        if ending.status:
            raise SystemExit(f"`{verb}` failed:\n{ending.text}")


def start(place: Path, root: Path, verb: str, options: Sequence[str], stop: float = 0.0, by: str = "") -> Ending:
    """Start a verb in ``root``; send the signal ``by`` after ``stop`` seconds, that of Ctrl-C twice."""
    words = verb.split(",")[0].split()
    if words[0] in ("report", "card"):
        words.append(str(root))
    elif words[0] != "patch":
        words += ["--config", str(place / "config.yaml"), "--trainer.default_root_dir", str(root)]
    words += [option.format(place=place, root=root) for option in options]
    with tempfile.NamedTemporaryFile(dir=place) as output:
        began = time.monotonic()
        process: BaseProcess = FORK.Process(target=_call, args=(words, output.name, str(place / "cache")))
        process.start()
        if by:
            process.join(stop)
            for _ in range(2 if by == "SIGINT" else 1):
                if process.exitcode is None and process.pid is not None:
                    os.kill(process.pid, signal.Signals[by])
                    process.join(0.05)
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            return Ending(-99, f"no end within {SECONDS} s", SECONDS)
        text = Path(output.name).read_text(encoding="utf-8", errors="replace")
        return Ending(process.exitcode, text, time.monotonic() - began)


def _call(words: list[str], output: str, cache: str) -> None:
    descriptor = os.open(output, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ |= {"ACT_LIGHTNING_CACHE": cache, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from act_lightning.cli import main as act_lightning

    sys.exit(act_lightning(words))


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def drill(place: Path, verb: str, options: argparse.Namespace) -> int:
    """Try every moment, or every size, of a verb; print what was seen, and return the number of failures."""
    before = digests(place / "before")
    shutil.copytree(place / "before", place / "after")
    written = _size(place / "after")
    straight = start(place, place / "after", verb, VERBS[verb])
    if straight.status:
        raise SystemExit(f"`{verb}` failed:\n{straight.text}")
    after = digests(place / "after")
    needed = max(_size(place / "after") - written, 0) + _replaced(verb, place / "after")
    shutil.rmtree(place / "after")
    signals, seen, failures = options.signals.split(","), Counter[str](), []
    for number in range(options.moments):
        root = place / "root"
        share = (number + 0.5) / options.moments
        if options.drill == "kill":
            by = signals[number % len(signals)]
            shutil.copytree(place / "before", root)
            ending = start(place, root, verb, VERBS[verb], share * straight.seconds, by)
            label = f"{by} at {share:.0%}"
            problems = [*check(place, root, verb, ending, before, after, full=False)]
            shutil.rmtree(root)
        else:
            label = f"room for {share:.0%}"
            with small_disk(root, int(share * needed)):
                shutil.copytree(place / "before", root, dirs_exist_ok=True)
                _leave(root, int(share * needed))
                ending = start(place, root, verb, VERBS[verb])
                problems = [*check(place, root, verb, ending, before, after, full=True)]
        seen["ended well" if ending.status == 0 else f"status {ending.status}"] += 1
        failures += [f"{label}: {problem}" for problem in problems]
    outcome = ", ".join(f"{count} {name}" for name, count in sorted(seen.items()))
    print(f"{verb}: {options.moments} starts ({straight.seconds:.1f} s; {outcome}), {len(failures)} faults", flush=True)
    for failure in failures:
        print("  " + failure[:2000].replace("\n", "\n  "), flush=True)
    return len(failures)


def check(
    place: Path, root: Path, verb: str, ending: Ending, before: dict[str, str], after: dict[str, str], full: bool
) -> Iterator[str]:
    """What was lost or left undone after a start that was disturbed."""
    if "Traceback" in ending.text or "Exception ignored" in ending.text:
        yield f"a traceback\n{ending.text[-1500:]}"
    if full and ending.status and not re.search(r"error: .*(/|No space left)", ending.text):
        yield f"no message that names a file\n{ending.text[-500:]}"
    yield from _lost(root, before, after, "at once")
    start(place, root, "fit", ["--transfer.ratio", "2"])
    yield from _lost(root, before, after, "after a start that failed")
    if full:
        subprocess.run(["mount", "-o", f"remount,size={LARGE}", root], check=True)
    again = start(place, root, verb, VERBS[verb])
    if again.status:
        yield f"the next start ends with status {again.status}\n{again.text[-1500:]}"
    now = digests(root)
    different = [name for name in after if name.endswith(".safetensors") and now.get(name) != after[name]]
    if different:
        yield f"the next start wrote others: {different}"
    if left := [name for name in now if re.search(r"\.(tmp|old)-\d|\.act_lightning\.lock", name)]:
        yield f"left behind: {left}"


def _lost(root: Path, before: dict[str, str], after: dict[str, str], when: str) -> Iterator[str]:
    """Files that are gone, or neither the earlier nor the later ones."""
    now = digests(root)
    gone = {name for name in before if name in after and name not in now and not LOGS.search(name)}
    gone -= {"checkpoints/last.ckpt"}  # of the earlier fit, which a new one removes
    if gone:
        yield f"gone {when}: {sorted(gone)}"
    wrong = [
        name
        for name, digest in now.items()
        if (name in before or name in after)
        and digest not in (before.get(name), after.get(name))
        and not LOGS.search(name)
        and not name.startswith(("checkpoints/", "sweep/", "evaluations/"))  # which hold times
    ]
    if wrong:
        yield f"neither old nor new {when}: {wrong}"
    for name in now:  # those are whole, at least
        if name.endswith(".json") and not name.startswith("."):
            json.loads((root / name).read_bytes())


@contextmanager
def small_disk(root: Path, room: int) -> Iterator[None]:
    """A file system of its own, as large as the files that are there before and ``room``."""
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={LARGE}", "tmpfs", root], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", root], check=True)
        root.rmdir()


def _leave(root: Path, room: int) -> None:
    used = shutil.disk_usage(root).used
    subprocess.run(["mount", "-o", f"remount,size={used + max(room, resource.getpagesize())}", root], check=True)


def _size(root: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in root.rglob("*"))


def _replaced(verb: str, root: Path) -> int:
    """Bytes of what a verb writes beside what it replaces."""
    places = {"fit": ("model", "checkpoints"), "merge": ("merged",), "patch apply": ("patched",), "report": ("report",)}
    return sum(_size(root / name) for name in places.get(verb.split(",")[0], ()))


if __name__ == "__main__":
    main()
