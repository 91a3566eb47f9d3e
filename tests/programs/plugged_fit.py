"""ACT in a plain training loop under DDP: TARGET SOURCE ROOT PROCESSES."""

import sys
from pathlib import Path

import lightning as L
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from act_lightning.callbacks import AbilitySource, ActivationDifferenceProfiler, MaskedTaskVectorInjection
from tests.loops import PlainModule, padded, quiet_trainer, random_samples


class Keep(L.Callback):
    def on_train_start(self, trainer, module):
        save_file(dict(module.net.named_parameters()), root / f"rank-{trainer.global_rank}.safetensors")


if __name__ == "__main__":
    target, source, root, processes = *map(Path, sys.argv[1:4]), int(sys.argv[4])
    loader = DataLoader(padded(random_samples(12), rows=2), batch_size=None)
    callbacks = [
        ActivationDifferenceProfiler([AbilitySource(str(source), abilities={"any": loader}, name="s")]),
        MaskedTaskVectorInjection(ratio=0.1),
        Keep(),
    ]
    trainer = quiet_trainer(root, *callbacks, devices=processes, strategy="ddp", max_steps=1)
    trainer.fit(PlainModule(AutoModelForCausalLM.from_pretrained(target)), loader)
