"""Evaluate, change and update a model in bf16-mixed under FSDP1, and compare with one process: ROOT FOLDER…."""

import sys
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.distributed.fsdp import MixedPrecision
from torch.utils.data import DataLoader

from act_lightning.architecture import decoder_layers
from act_lightning.checkpoints.models import load_model
from act_lightning.errors import ActError
from act_lightning.module import AbilityTransferModule
from act_lightning.training.loss import answer_loss, score_answers
from act_lightning.training.sharding import Layout, run_in_strategy
from tests.loops import padded, quiet_trainer, random_samples
from tests.training.on_cpu import FSDP1

BATCHES = padded(random_samples(8), rows=2)
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0}}


class Watch(L.Callback):
    def __init__(self, expected):
        self.buffers = dict(expected.named_buffers())
        self.size = sum(parameter.numel() for parameter in expected.parameters())
        self.pending = 0

    def on_fit_start(self, trainer, module):
        """Change the weights of a model that was evaluated: what was gathered then must not be trained."""
        run_in_strategy(trainer, partial(score_answers, module.language_model, BATCHES[0]))
        for _, part in Layout(module.language_model, trainer.strategy.model).parts(layout_names(module)):
            part.values.mul_(0.5)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        for name, buffer in module.language_model.named_buffers():
            name = name.replace("_fsdp_wrapped_module.", "")
            assert buffer.dtype == self.buffers[name].dtype and torch.equal(buffer, self.buffers[name]), name
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        assert sum(gradient.numel() for gradient in gradients) < 0.6 * self.size, "sharded between micro-batches"
        self.pending += 1

    def on_train_end(self, trainer, module):
        layout = Layout(module.language_model, trainer.strategy.model)
        self.weights = {name: layout.whole(name) for name in layout_names(module)}


def layout_names(module):
    return [name.replace("_fsdp_wrapped_module.", "") for name, _ in module.language_model.named_parameters()]


def main() -> None:
    root, *folders = map(Path, sys.argv[1:])
    for folder in folders:
        model, half = load_model(folder, torch.float32), load_model(folder, torch.bfloat16)
        with torch.no_grad():
            for parameter in (*model.parameters(), *half.parameters()):
                parameter.mul_(0.5)
        gradients = {name: torch.zeros_like(values) for name, values in model.named_parameters()}
        count = 0
        for batch in BATCHES:
            loss, tokens = answer_loss(half, batch)
            loss.backward()
            count += tokens
            for name, parameter in half.named_parameters():
                gradients[name] += parameter.grad.float()
                parameter.grad = None
        policy = {type(layer) for layer in decoder_layers(model).values()}
        watch = Watch(model)
        strategy = FSDP1(auto_wrap_policy=policy)
        settings = {"devices": 2, "strategy": strategy, "precision": "bf16-mixed", "accumulate_grad_batches": 2}
        loader = DataLoader(BATCHES, batch_size=None)
        quiet_trainer(root, watch, **settings).fit(AbilityTransferModule(str(folder), optimizer=SGD), loader)
        assert watch.pending == 2
        for name, before in model.named_parameters():
            torch.testing.assert_close(watch.weights[name], before - gradients[name] / count, rtol=1e-6, atol=1e-7)
    settings["strategy"] = FSDP1(mixed_precision=MixedPrecision(buffer_dtype=torch.bfloat16))
    with pytest.raises(ActError, match=r"trainer\.strategy\.mixed_precision = .* must be left out"):
        quiet_trainer(root, **settings).fit(AbilityTransferModule(str(folder), optimizer=SGD), loader)


if __name__ == "__main__":
    main()
