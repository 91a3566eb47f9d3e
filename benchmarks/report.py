"""How long `report` takes, and how much memory, for the paper's 22 abilities and Qwen2.5-7B's 1.75 million channels.

    python benchmarks/report.py                                # a synthetic run in a temporary folder, measured
    python benchmarks/report.py --out runs/synthetic --pairs 2 # kept, to look at

The channels are Qwen2.5-7B's, from its config; the scores are drawn, heavy-tailed, with what is common to a language
and to a domain, so that the page looks like a real one and means nothing. There are no weights: Finding 5 is not shown.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from act_lightning.channels import ChannelInventory, inventory
from act_lightning.scores import ScoreRecord, score_path, write_scores

LANGUAGES = "en zh ar bn hu ja ko sw te th vi".split()
QWEN_7B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
# The largest scores are those of the head and of what writes into the residual stream.
SCALES = {"lm_head": 1.2, "down_proj": 0.5, "q_proj": 0.5, "k_proj": 0.7, "o_proj": 0.3, "embed_tokens": 0.01}
PAIRS = (
    ("Qwen/Qwen2.5-Math-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
    ("Qwen/Qwen2.5-Coder-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Folder of the runs, one a pair; by default a temporary one.")
    parser.add_argument("--pairs", type=int, choices=(1, 2), default=1)
    args = parser.parse_args()
    with nullcontext(args.out) if args.out else tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / f"pair-{i}" for i in range(args.pairs)]
        with torch.device("meta"):
            channels = inventory(AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **QWEN_7B)))
        for i, run in enumerate(runs):
            write_run(run, channels, i)
        print(json.dumps(measured(runs), indent=2))


def write_run(run: Path, channels: ChannelInventory, pair: int) -> None:
    target, source = PAIRS[pair]
    for language in LANGUAGES:
        for domain in ("math", "science"):
            record = ScoreRecord(
                tokens=250_000 + 1_000 * LANGUAGES.index(language),
                samples=1500,
                dropped=0,
                models={"target": target, "source": source},
                identities={"target": {"digest": target}, "source": {"digest": source}},
                data=f"{domain}-{language}",
                dtype="bfloat16",
                versions={"torch": torch.__version__},
            )
            scores = drawn_scores(channels, language, domain, pair)
            write_scores(
                score_path(run / "scores", source.split("/")[-1], f"{domain}-{language}"), channels, scores, record
            )


def drawn_scores(channels: ChannelInventory, language: str, domain: str, pair: int) -> Tensor:
    """Scale of the module × log-normal of what all share, the language, the domain, the pair, and neither."""
    parts = {"all": 0.7, language: 0.8, domain: 0.3, f"{language} {domain} {pair}": 0.3}
    exponent = sum(weight * _normal(channels.total, key) for key, weight in parts.items())
    scale = torch.cat([torch.full((m.count,), SCALES.get(m.name.split(".")[-1], 0.15)) for m in channels.modules])
    return scale * torch.exp(exponent)


def _normal(count: int, key: str) -> Tensor:
    seed = int.from_bytes(key.encode()[:7], "little") + sum(key.encode())
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def measured(runs: list[Path]) -> dict[str, object]:
    """Time and peak memory of the verb in a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "act_lightning", "report", *map(str, runs)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),  # on a busy machine, what a free one would take
        "peak_GB": round(usage.ru_maxrss / 1024**2, 2),
        "page_MB": round((runs[0] / "report" / "index.html").stat().st_size / 1e6, 2),
    }


if __name__ == "__main__":
    main()
