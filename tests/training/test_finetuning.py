"""Fine-tuning against a plain torch loop: one sample at a time, all logits, the mean over all answer tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.module import AbilityTransferModule
from act_lightning.training.loss import answer_loss
from tests.loops import Batches, padded, quiet_trainer, random_samples
from tests.reference import act as reference
from tests.reference.act import IGNORED, Sample
from tests.tiny import ARCHITECTURES, save_model, tiny_model, tiny_tokenizer, write_jsonl

RATE = 1.0e-3
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "qwen2": {},
    "gpt2": NO_DROPOUT,
}
# Queries' products with the bias of GPT-2's keys shift all attention scores alike, so its gradient is nothing but
# rounding, which Adam would blow up to a full step: a larger eps.
ADAM = {"class_path": "torch.optim.Adam", "init_args": {"eps": 1.0e-5}}
SHAPES = [(1, 16), (16, 1), (4, 4)]


class Watch(L.Callback):
    """Notes after every update what was logged, and the rate it was made with."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step > len(self.logged):
            self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def model_of(name: str) -> PreTrainedModel:
    return tiny_model(name.split()[0], **MODELS[name])


def windows_of(samples: Sequence[Sample], size: int = 16) -> list[Sequence[Sample]]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def samples_of_all_lengths() -> list[Sample]:
    """Two whole windows and half a one, from 2 to 120 tokens a sample."""
    return random_samples(40, longest=120, seed=9)


def adam_of(setting: Any, model: nn.Module) -> torch.optim.Adam:
    eps = setting["init_args"]["eps"] if isinstance(setting, dict) else 1.0e-8
    return torch.optim.Adam(model.parameters(), RATE, eps=eps)


@cache
def trained(name: str, clip: float | None = None) -> dict[str, Tensor]:
    """The weights after the plain loop's three updates."""
    model = model_of(name).train()
    optimizer = adam_of(ADAM if name == "gpt2" else "adam", model)
    reference.train(model, windows_of(samples_of_all_lengths()), optimizer, clip)
    return {key: values.detach() for key, values in model.named_parameters()}


def fit(
    folder: Path, batches: Batches, *callbacks: L.Callback, module: dict[str, Any] | None = None, **trainer: Any
) -> AbilityTransferModule:
    """The module after one epoch of these micro-batches."""
    ours = AbilityTransferModule(str(folder), **({"learning_rate": RATE} | (module or {})))
    loader: DataLoader[Any] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    quiet_trainer(folder.parent, *callbacks, limit_val_batches=0, **trainer).fit(ours, loader, loader)
    return ours


def saved(model: PreTrainedModel, root: Path) -> Path:
    return save_model(model, tiny_tokenizer(), root / "target")


def assert_close(model: nn.Module, expected: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    found = dict(model.named_parameters())
    assert set(found) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name].detach(), values, rtol=0, atol=tolerance, msg=f"{name} is not close")


def loss_of(model: PreTrainedModel, samples: Sequence[Sample]) -> float:
    with torch.no_grad():
        return float(reference.mean_loss(model, samples))


@pytest.mark.parametrize(("rows", "accumulate"), SHAPES)
@pytest.mark.parametrize("name", MODELS)
def test_updates_equal_a_plain_loop(name: str, rows: int, accumulate: int, tmp_path: Path) -> None:
    model, samples = model_of(name), samples_of_all_lengths()
    ours = fit(
        saved(model, tmp_path),
        padded(samples, rows),
        module={"optimizer": ADAM if name == "gpt2" else "adam"},
        accumulate_grad_batches=accumulate,
    )
    assert ours.trainer.global_step == 3
    assert_close(ours.language_model, trained(name))
    moved = [float((trained(name)[key] - values.detach()).abs().max()) for key, values in model.named_parameters()]
    assert min(moved) > 50e-5 or name == "gpt2", "every parameter moves by far more than the tolerance"


@pytest.mark.parametrize("packing", ["auto", True])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_sixteen_packed_samples_make_the_update_of_sixteen_micro_batches(
    name: str, packing: Any, tmp_path: Path
) -> None:
    """Through the data module: three updates of 16, 16 and 8 samples, whatever stands in a micro-batch."""
    folder = saved(model_of(name), tmp_path)
    file = write_jsonl(
        tmp_path / "d.jsonl", [{"prompt": f"say {i}", "answer": "one " * (1 + 7 * i % 23)} for i in range(40)]
    )
    found, shapes = [], Shapes()
    for batch_size, accumulate in SHAPES:
        ours = AbilityTransferModule(str(folder), learning_rate=RATE, optimizer=ADAM)
        data = AbilityDataModule(
            {"d": AbilityData(str(file))}, batch_size=batch_size, target=str(folder), packing=packing
        )
        quiet_trainer(tmp_path, shapes, accumulate_grad_batches=accumulate).fit(ours, data)
        assert ours.trainer.global_step == 3
        found.append({key: values.detach() for key, values in ours.language_model.named_parameters()})
    assert shapes.rows == {1}, "one row, however many samples"
    assert shapes.packed == 3 + 10
    for weights in found[1:]:
        for key, values in weights.items():
            torch.testing.assert_close(values, found[0][key], rtol=0, atol=1e-6, msg=key)


class Shapes(L.Callback):
    """Notes how many rows batches have, and how many batches are packed."""

    def __init__(self) -> None:
        self.rows: set[int] = set()
        self.packed = 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.rows.add(len(batch["input_ids"]))
        self.packed += "position_ids" in batch


def test_an_average_of_micro_batches_would_be_something_else(tmp_path: Path) -> None:
    """That the comparison above can fail: the mean over micro-batches' means is outside its tolerance."""
    model = model_of("llama").train()
    optimizer = adam_of("adam", model)
    for window in windows_of(samples_of_all_lengths()):
        optimizer.zero_grad()
        torch.stack([reference.mean_loss(model, [sample]) for sample in window]).mean().backward()
        optimizer.step()
    with pytest.raises(AssertionError, match="is not close"):
        assert_close(model, trained("llama"))


@pytest.mark.parametrize(("rows", "accumulate"), SHAPES)
def test_the_gradient_is_the_mean_and_clipping_acts_on_it(rows: int, accumulate: int, tmp_path: Path) -> None:
    """SGD, for Adam does not notice a gradient's scale; without a limit too, for a clipped gradient has none."""
    samples, folder = samples_of_all_lengths(), saved(model_of("llama"), tmp_path)
    plainly = []
    for clip in (None, 0.3):
        plain = model_of("llama").train()
        reference.train(plain, windows_of(samples), torch.optim.SGD(plain.parameters(), 0.5), clip)
        plainly.append(dict(plain.named_parameters()))
        gentle = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
        settings: dict[str, Any] = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
        ours = fit(folder, padded(samples, rows), module={"optimizer": gentle}, **settings)
        assert_close(ours.language_model, plainly[-1])
    gaps = [float((plainly[0][name] - values).abs().max().detach()) for name, values in plainly[1].items()]
    assert max(gaps) > 1e-3, "the limit is reached"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_that_of_full_logits(architecture: str) -> None:
    capped: dict[str, Any] = {"final_logit_softcapping": 2.0} if architecture == "gemma2" else {}
    model, samples = tiny_model(architecture, **capped), random_samples(5, seed=2)
    (batch,) = padded(samples, rows=5)
    with torch.no_grad():
        loss, tokens = answer_loss(model, batch)
        full = model(**{name: batch[name] for name in batch if name != "labels"}).logits
    assert tokens == sum(label != IGNORED for _, labels in samples for label in labels[1:])
    assert float(loss) / tokens == pytest.approx(loss_of(model, samples), rel=1e-5)
    assert architecture != "gemma2" or float(full.abs().max()) > 1.0, "the cap bends these logits"


def test_gradient_checkpointing_changes_memory_only(tmp_path: Path) -> None:
    counts = []
    for checkpointing in (False, True):
        counting = Counting()
        ours = fit(
            saved(model_of("llama"), tmp_path),
            padded(samples_of_all_lengths(), 4),
            counting,
            module={"gradient_checkpointing": checkpointing},
            accumulate_grad_batches=4,
        )
        assert_close(ours.language_model, trained("llama"))
        counts.append(len(counting.calls))
    assert counts == [10, 20], "each layer runs again in the backward pass"


class Counting(L.Callback):
    """Counts how often the first layer's attention runs."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.model.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: self.calls.append(1))


def test_micro_batches_without_answers_weigh_nothing(tmp_path: Path) -> None:
    samples = samples_of_all_lengths()[:12]
    silent = [([5, 6, 7], [IGNORED] * 3), ([8], [8]), ([9, 9], [IGNORED] * 2), ([4], [IGNORED])]
    plain = model_of("llama").train()
    folder = saved(plain, tmp_path)
    reference.train(plain, [samples], torch.optim.Adam(plain.parameters(), RATE))
    mixed = [silent[0], *samples[:7], *silent[1:3], *samples[7:], silent[3]]
    ours = fit(folder, padded(mixed, rows=1), accumulate_grad_batches=16)
    assert_close(ours.language_model, dict(plain.named_parameters()))
    start = dict(model_of("llama").named_parameters())
    nothing = fit(folder, padded(silent, rows=2), accumulate_grad_batches=2)
    assert_close(nothing.language_model, start, tolerance=0.0)


class Stop(L.Callback):
    """Breaks off in the middle of a window."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        raise KeyError("stopped")


def test_a_window_that_was_broken_off_is_forgotten(tmp_path: Path) -> None:
    ours, watch = AbilityTransferModule(str(saved(model_of("llama"), tmp_path)), learning_rate=RATE), Watch()
    loader: DataLoader[Any] = DataLoader(padded(samples_of_all_lengths(), 4), batch_size=None)  # type: ignore[arg-type]
    for callback in (Stop(), watch):
        trainer = quiet_trainer(tmp_path, callback, limit_val_batches=0, accumulate_grad_batches=4)
        if isinstance(callback, Stop):
            with pytest.raises(KeyError, match="stopped"):
                trainer.fit(ours, loader, loader)
        else:
            trainer.fit(ours, loader, loader)
    assert_close(ours.language_model, trained("llama"))


def test_mixed_precision_keeps_full_weights_and_moments(tmp_path: Path) -> None:
    ours = fit(
        saved(model_of("llama"), tmp_path),
        padded(samples_of_all_lengths(), 4),
        accumulate_grad_batches=4,
        precision="bf16-mixed",
    )
    (optimizer,) = ours.trainer.optimizers
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    assert {moment.dtype for moment in moments} == {torch.float32}
    assert len(moments) == 2 * len(list(ours.parameters()))
    fine = [parameter for parameter in ours.parameters() if not torch.equal(parameter.bfloat16().float(), parameter)]
    assert len(fine) == len(list(ours.parameters())), "updates finer than bfloat16 are not lost"


def test_float16_scales_the_loss_and_skips_an_update_that_overflows(tmp_path: Path) -> None:
    """The first, at a scale of 2^24; the second is made, and is that of float32 but for float16's own rounding."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, backoff_factor=2.0**-8)
    ours = fit(
        saved(model_of("llama"), tmp_path),
        padded(samples_of_all_lengths()[:32], 4),
        accumulate_grad_batches=4,
        module={"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}},
        plugins=MixedPrecision("16-mixed", "cpu", scaler),
    )
    assert scaler.get_scale() == 2.0**16
    before = dict(model_of("llama").named_parameters())
    plain = model_of("llama").train()
    reference.train(plain, [samples_of_all_lengths()[16:32]], torch.optim.SGD(plain.parameters(), 0.1))
    for name, expected in plain.named_parameters():
        update, found = expected - before[name], ours.language_model.get_parameter(name) - before[name]
        assert float((found - update).detach().norm() / update.detach().norm()) < 5e-3, name


def test_weights_of_half_precision_are_trained_in_full(tmp_path: Path) -> None:
    stored, plain = tiny_model("llama", dtype=torch.bfloat16), model_of("llama").train()
    for parameter in plain.parameters():  # and no buffer: rotary frequencies stay exact
        parameter.data = parameter.data.bfloat16().float()
    samples = samples_of_all_lengths()[:16]
    reference.train(plain, [samples], torch.optim.Adam(plain.parameters(), RATE))
    ours = fit(saved(stored, tmp_path), padded(samples, 4), accumulate_grad_batches=4)
    assert_close(ours.language_model, dict(plain.named_parameters()))


def test_a_schedule_steps_once_an_update(tmp_path: Path) -> None:
    halving = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1, "gamma": 0.5}}
    watch, folder = Watch(), saved(model_of("llama"), tmp_path)
    fit(
        folder,
        padded(samples_of_all_lengths(), 4),
        watch,
        module={"lr_scheduler": halving},
        accumulate_grad_batches=4,
    )
    assert watch.rates == [RATE, RATE / 2, RATE / 4]
    own_rate = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.25}}
    fit(folder, padded(random_samples(2)), watch, module={"lr_scheduler": halving, "optimizer": own_rate})
    assert watch.rates[3:] == [0.25], "a rate of the optimizer's own wins"


@pytest.mark.filterwarnings("ignore:The installed version of bitsandbytes was compiled without GPU support")
def test_eight_bit_adam(tmp_path: Path) -> None:
    """Matrices of 4,096 elements and more have moments of 8 bits; the weights end near those of torch's AdamW."""
    model = tiny_model("llama", hidden_size=64, intermediate_size=64)
    folder, samples = saved(model, tmp_path), random_samples(8)
    eight_bit = {"class_path": "bitsandbytes.optim.AdamW8bit", "init_args": {"weight_decay": 0.0}}
    ours = fit(folder, padded(samples), module={"optimizer": eight_bit}, accumulate_grad_batches=2)
    (optimizer,) = ours.trainer.optimizers
    moments = {state["state1"].dtype for state in optimizer.state.values()}
    assert moments == {torch.uint8, torch.float32}
    before = dict(model.named_parameters())
    plain = tiny_model("llama", hidden_size=64, intermediate_size=64).train()
    reference.train(plain, [samples], torch.optim.AdamW(plain.parameters(), RATE, weight_decay=0.0))
    for name, parameter in ours.language_model.named_parameters():
        step = dict(plain.named_parameters())[name].detach() - before[name].detach()
        made = parameter.detach() - before[name].detach()
        assert float(nn.functional.cosine_similarity(made.flatten(), step.flatten(), 0)) > 0.95, name


def test_the_logged_loss_is_the_windows_token_mean(tmp_path: Path) -> None:
    samples, plain, watch = samples_of_all_lengths(), model_of("llama").train(), Watch()
    folder = saved(plain, tmp_path)
    optimizer = torch.optim.Adam(plain.parameters(), RATE)
    expected = []
    for window in windows_of(samples):
        tokens = sum(label != IGNORED for _, labels in window for label in labels[1:])
        expected.append({"train_loss": loss_of(plain, window), "answer_tokens": tokens})
        reference.train(plain, [window], optimizer)
    fit(folder, padded(samples, 4), watch, accumulate_grad_batches=4)
    assert [logged["answer_tokens"] for logged in watch.logged] == [one["answer_tokens"] for one in expected]
    found = [logged["train_loss"] for logged in watch.logged]
    assert found == pytest.approx([one["train_loss"] for one in expected], rel=1e-5)


def test_validation_loss_of_each_ability_is_its_token_mean(tmp_path: Path) -> None:
    model = model_of("llama")
    files = {
        name: write_jsonl(
            tmp_path / f"{name}.jsonl", [{"prompt": f"Say {i}", "answer": "one " * (1 + i * i)} for i in range(count)]
        )
        for name, count in (("long", 7), ("short", 2))
    }
    data = AbilityDataModule(
        abilities={name: AbilityData(str(file)) for name, file in files.items()},
        validation=["long", "short"],
        max_length=64,
        batch_size=2,
        target=str(saved(model, tmp_path)),
    )
    of_loaders = quiet_trainer(tmp_path).validate(AbilityTransferModule(data.target), data, verbose=False)
    found = {name: value for logged in of_loaders for name, value in logged.items()}
    means = {name: loss_of(model, plain(data.held_out[name].samples)) for name in files}
    for name, value in means.items():
        assert found[f"val_loss/{name}"] == pytest.approx(value, rel=1e-5)
    assert found["val_loss"] == pytest.approx(sum(means.values()) / 2, rel=1e-5)


def plain(samples: Sequence[Any]) -> list[Sample]:
    return [(list(sample.input_ids), list(sample.labels)) for sample in samples]
