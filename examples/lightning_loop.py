"""ACT in a Lightning loop of your own: two callbacks, and nothing else changes.

The loop runs twice, without and with the callbacks, so that you see what the transfer adds to fine-tuning.

    python examples/lightning_loop.py
    python examples/lightning_loop.py --target Qwen/Qwen2.5-Math-1.5B-Instruct --source Qwen/Qwen2.5-1.5B-Instruct \
        --ability data/science-ar.jsonl --keep data/math-en.jsonl --lr 2e-5

Without arguments it uses the laboratory, tiny models that are trained on first use (two minutes). A data file has a
JSON object with `prompt` and `answer` on each line.
"""

import argparse
import json

import lightning as L
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from act_lightning.callbacks import AbilitySource, ActivationDifferenceProfiler, MaskedTaskVectorInjection
from act_lightning.checkpoints.models import locate
from act_lightning.lab.abilities import rows as lab_rows


class MyModule(L.LightningModule):
    """Yours: any module that holds one causal language model of transformers."""

    def __init__(self, folder, lr):
        super().__init__()
        self.net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
        self.lr = lr

    def training_step(self, batch, batch_idx):
        return self.net(**batch).loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("loss", self.net(**batch).loss, batch_size=len(batch["labels"]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def read_rows(name, split):
    """The laboratory's split, or a file's: every tenth row is for the test."""
    if name.startswith("lab:"):
        return lab_rows(name.removeprefix("lab:"), split)
    with open(name, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return rows[::10] if split == "test" else [row for i, row in enumerate(rows) if i % 10]


def encode(tokenizer, row):
    """Yours: token ids, with labels at the answer's tokens only (-100 elsewhere)."""
    question = [{"role": "user", "content": row["prompt"]}]
    before = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(before, add_special_tokens=False).input_ids
    answer = tokenizer(row["answer"] + tokenizer.eos_token, add_special_tokens=False).input_ids
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def collate(samples):
    def pad(lists, value):
        longest = max(map(len, lists))
        return torch.tensor([values + [value] * (longest - len(values)) for values in lists])

    ids = [sample["input_ids"] for sample in samples]
    labels = [sample["labels"] for sample in samples]
    mask = [[1] * len(values) for values in ids]
    return {"input_ids": pad(ids, 0), "attention_mask": pad(mask, 0), "labels": pad(labels, -100)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="lab:specialist", help="the model to improve")
    parser.add_argument("--source", default="lab:generalist", help="its sibling that has the ability")
    parser.add_argument("--ability", default="lab:words", help="samples of the ability to bring back")
    parser.add_argument("--keep", default="lab:arithmetic", help="samples of what must not be lost")
    parser.add_argument("--samples", type=int, default=256, help="read of each file, at most")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--out", default="runs/lightning_loop")
    args = parser.parse_args()

    folder = locate(args.target)  # for names such as lab:specialist; from_pretrained takes a hub id as it is
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def loader_of(name, split, batch_size):
        samples = [encode(tokenizer, row) for row in read_rows(name, split)[: args.samples]]
        return DataLoader(samples, batch_size=batch_size, collate_fn=collate)

    loader = loader_of(args.ability, "train", 16)
    validation = [loader_of(args.ability, "test", 64), loader_of(args.keep, "test", 64)]
    source = AbilitySource(args.source, abilities={"ability": loader})
    act = [
        ActivationDifferenceProfiler([source]),
        MaskedTaskVectorInjection(selection="attribution", share="parameters", ratio=0.02, scale=1.0),
    ]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    losses = {}
    for name, callbacks in (("target", None), ("fine-tuning alone", []), ("ACT, then the same", act)):
        L.seed_everything(0, verbose=False)
        trainer = L.Trainer(max_epochs=1, callbacks=callbacks, default_root_dir=args.out, **quiet)
        module = MyModule(folder, args.lr)
        if callbacks is not None:
            trainer.fit(module, loader, validation)
        results = trainer.validate(module, validation, verbose=False)
        losses[name] = [loss for result in results for loss in result.values()]

    print(f"\nLoss on test answers: {'ability':>8} {'keep':>8}")
    for name, (of_ability, of_keep) in losses.items():
        print(f"{name:24}  {of_ability:8.3f} {of_keep:8.3f}")
    print(
        f"\nWhat moved is in {args.out}/transfer.json. Next: `python -m act_lightning report {args.out}` draws where,"
    )
    print("and examples/custom_scorer.py compares ways to choose it.")


if __name__ == "__main__":
    main()
