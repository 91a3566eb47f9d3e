"""Two abilities from two sources into one model, then fine-tuning, with the package's own modules.

    python examples/two_sources.py
    python examples/two_sources.py --target Qwen/Qwen2.5-Math-1.5B-Instruct \
        --source Qwen/Qwen2.5-1.5B-Instruct Qwen/Qwen2.5-Coder-1.5B-Instruct \
        --ability data/science-ar.jsonl data/code.jsonl --keep data/math-en.jsonl --lr 2e-5

Without arguments it uses the laboratory, tiny models that are trained on first use (two minutes). In a config, this is
`profile.sources` with two entries.
"""

import argparse

import lightning as L
import torch
from transformers import AutoModelForCausalLM

from act_lightning.callbacks import (
    AbilitySource,
    ActivationDifferenceProfiler,
    HuggingFaceExport,
    MaskedTaskVectorInjection,
)
from act_lightning.checkpoints.models import locate
from act_lightning.data.ability_data import AbilityData, EvaluationData
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.evaluation.evaluator import score_model
from act_lightning.module import AbilityTransferModule


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="lab:specialist", help="the model to improve")
    pair, taken = ["lab:generalist", "lab:base"], ["lab:words-de", "lab:words-es"]
    parser.add_argument("--source", nargs=2, default=pair, help="two siblings of the target")
    parser.add_argument("--ability", nargs=2, default=taken, help="samples of the ability to take from each")
    parser.add_argument("--keep", default="lab:arithmetic", help="samples of what must not be lost")
    parser.add_argument("--samples", type=int, default=240, help="of each ability")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--out", default="runs/two_sources")
    args = parser.parse_args()

    L.seed_everything(0, verbose=False)
    files = dict(zip(("first", "second", "keep"), [*args.ability, args.keep], strict=True))
    limit, evaluations = {"limit": args.samples}, {}
    for name, path in files.items():
        unseen = {"split": "test"} if path.startswith("lab:") else {"skip": args.samples}
        # kind="number" or "choice" where an answer is more than one exact string
        evaluations[name] = EvaluationData(path, role="keep" if name == "keep" else "recover", **unseen, **limit)
    abilities = {name: AbilityData(path, **limit) for name, path in files.items()}
    data = AbilityDataModule(abilities, evaluations=evaluations, target=args.target)
    first, second = args.source
    sources = [AbilitySource(first, ["first"], name="first"), AbilitySource(second, ["second"], name="second")]
    profiler = ActivationDifferenceProfiler(sources)
    # A source may have a scale and a ratio of its own. A row that both select takes both changes;
    # with TIES they would vote instead: method="ties".
    injection = MaskedTaskVectorInjection(selection="attribution", share="parameters", ratio=0.02, scale=1.0)
    trainer = L.Trainer(
        max_epochs=1,
        accumulate_grad_batches=16,
        callbacks=[profiler, injection, HuggingFaceExport(overwrite=True)],
        default_root_dir=args.out,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = AbilityTransferModule(args.target, learning_rate=args.lr)
    trainer.fit(module, data)

    target = AutoModelForCausalLM.from_pretrained(locate(args.target), dtype=torch.float32)
    before, after = (score_model(data, model, tokens_per_batch=4096) for model in (target, module.model))
    print("\nRight answers in %, with 95 % intervals:       before           after")
    for name, path in files.items():
        print(f"{name:7} {path:30} {before.share(name).text:>15} {after.share(name).text:>15}")
    for name, source in injection.record["sources"].items():
        print(f"from {name}: {source['union']} channels, {source['parameter_share']:.1%} of the parameters")
    print(
        f"\nThe model is in {args.out}/model. Next: `python -m act_lightning report {args.out}` draws what each brings."
    )


if __name__ == "__main__":
    main()
