"""ACT before a Hugging Face Trainer: score, move the best rows into the model, then train as you do now.

    pip install accelerate        # which the Trainer needs
    python examples/huggingface_trainer.py
    python examples/huggingface_trainer.py --target Qwen/Qwen2.5-Math-1.5B-Instruct \
        --source Qwen/Qwen2.5-1.5B-Instruct --ability data/science-ar.jsonl --lr 2e-5

Without arguments it uses the laboratory, tiny models that are trained on first use (two minutes).
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import act_lightning as act
from act_lightning.checkpoints.models import locate
from act_lightning.data.ability_data import AbilityData
from act_lightning.data.batches import collate
from act_lightning.data.datamodule import AbilityDataModule


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="lab:specialist", help="the model to improve")
    parser.add_argument("--source", default="lab:generalist", help="its sibling that has the ability")
    parser.add_argument("--ability", default="lab:words", help="samples of the ability to bring back")
    parser.add_argument("--samples", type=int, default=256, help="to compare and to train on; as many are held out")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--out", default="runs/huggingface_trainer")
    args = parser.parse_args()

    # Rows to token ids, with labels at the answer's tokens only. Your own data set serves as well.
    unseen = {"split": "test"} if args.ability.startswith("lab:") else {"skip": args.samples}
    rows = {
        "train": AbilityData(args.ability, limit=args.samples),
        "test": AbilityData(args.ability, limit=args.samples, **unseen),
    }
    data = AbilityDataModule(rows, train=["train"], target=args.target, batch_size=16)
    data.prepare_data()
    data.setup("fit")
    train, test = (data.tokenized[name].samples for name in rows)

    # ACT, before there is a Trainer: score, select, move.
    scores = act.score(args.target, args.source, list(data.train_dataloader()), scorer="attribution")
    mask = scores.select(0.02, share="parameters")
    model, merged = (AutoModelForCausalLM.from_pretrained(locate(args.target), dtype=torch.float32) for _ in range(2))
    act.merge_(merged, args.source, mask, scale=1.0)

    settings = TrainingArguments(
        output_dir=args.out,
        learning_rate=args.lr,
        num_train_epochs=1,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    losses = {}
    for name, start in (("fine-tuning alone", model), ("ACT, then the same", merged)):
        trainer = Trainer(
            start,
            settings,
            train_dataset=train,
            eval_dataset=test,
            data_collator=lambda samples: collate(samples, pad_id=0),
        )
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        losses[name] = before, trainer.evaluate()["eval_loss"]

    print(f"\n{mask}\nLoss on {len(test)} test answers before and after the Trainer:")
    for name, (before, after) in losses.items():
        print(f"{name:20} {before:8.3f} {after:8.3f}")
    merged.save_pretrained(args.out)
    print(f"\nThe model is in {args.out}. Next: `mask.to_frame()` lists what moved, `mask.scores.save(PATH)` keeps the")
    print("scores, and examples/publish_patch.py makes a small file of what changed.")


if __name__ == "__main__":
    main()
