"""Publish what a transfer changed as one small file, and apply it to the model it was made for.

    python examples/publish_patch.py
    python examples/publish_patch.py --target Qwen/Qwen2.5-Math-1.5B-Instruct --source Qwen/Qwen2.5-1.5B-Instruct \
        --ability data/science-ar.jsonl

Without arguments it uses the laboratory, tiny models that are trained on first use (two minutes). The verbs
`python -m act_lightning patch make`, `apply`, `revert` and `show` do the same.
"""

import argparse
from pathlib import Path

import act_lightning as act
from act_lightning.checkpoints.models import locate
from act_lightning.data.ability_data import AbilityData
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.errors import ActError
from act_lightning.patches.apply import apply_patch, revert_patch
from act_lightning.patches.make import make_patch


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="lab:specialist", help="the model to improve")
    parser.add_argument("--source", default="lab:generalist", help="its sibling that has the ability")
    parser.add_argument("--ability", default="lab:words", help="samples of the ability to bring back")
    parser.add_argument("--samples", type=int, default=256, help="to compare the two models on")
    parser.add_argument("--out", default="runs/publish_patch")
    args = parser.parse_args()
    target, out = locate(args.target), Path(args.out)

    # You, who have both models: transfer, and make the patch.
    abilities = {"ability": AbilityData(args.ability, limit=args.samples)}
    data = AbilityDataModule(abilities, target=args.target, batch_size=16)
    data.prepare_data()
    data.setup("fit")
    batches = list(data.train_dataloader())
    mask = act.score(args.target, args.source, batches, scorer="attribution").select(0.02, share="parameters")
    act.merge(target, args.source, mask, scale=1.0, out=out / "merged", overwrite=True)
    patch = make_patch(target, out / "merged", out / "ability.safetensors", names=(args.target, "merged"))

    # Anyone who has the target, and your file.
    apply_patch(target, [patch.path], out / "patched", overwrite=True)
    again = revert_patch(out / "patched", [patch.path], out / "reverted", overwrite=True)
    try:
        apply_patch(out / "patched", [patch.path], out / "twice")
    except ActError as error:
        refusal = str(error)

    size, whole = patch.path.stat().st_size, sum(file.stat().st_size for file in target.glob("*.safetensors"))
    print(f"\n{mask}")
    print(f"patch: {size / 1e6:.2f} MB, {size / whole:.1%} of the model's {whole / 1e6:.2f} MB")
    print(f"reverted, the weights are the target's to the last bit: {again == patch.record.base}")
    print(f"applied twice, it is refused: {refusal}")
    print(f"\nNext: `python -m act_lightning patch show {patch.path}` lists what it changes, and")
    print(f"`hf upload OWNER/NAME {patch.path}` publishes it, for")
    print("`python -m act_lightning patch apply --patch hf://OWNER/NAME/ability.safetensors@REVISION …`.")


if __name__ == "__main__":
    main()
