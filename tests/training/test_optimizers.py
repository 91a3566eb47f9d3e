"""Optimizers and schedules by name or class path: the rule on learning rates, and what is refused before loading."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from act_lightning.errors import ActError
from act_lightning.training.optimizers import make_optimizer, make_scheduler, optimizer_issues

ADAMW = "torch.optim.AdamW"
COSINE = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 4}}


def matrix() -> nn.Parameter:
    return nn.Parameter(torch.ones(2, 2))


@pytest.mark.parametrize(
    ("setting", "cls", "rate"),
    [
        ("adam", torch.optim.Adam, 0.25),
        ("adamw", torch.optim.AdamW, 0.25),
        ({"class_path": ADAMW}, torch.optim.AdamW, 0.25),
        ({"class_path": ADAMW, "init_args": {"weight_decay": 0.1}}, torch.optim.AdamW, 0.25),
        ({"class_path": ADAMW, "init_args": {"lr": 0.5}}, torch.optim.AdamW, 0.5),
        ({"class_path": "torch.optim.SGD", "init_args": None}, torch.optim.SGD, 0.25),
    ],
)
def test_the_rate_goes_to_optimizers_that_bring_none(setting: Any, cls: type, rate: float) -> None:
    assert optimizer_issues(setting, None, 0.25) == []
    optimizer = make_optimizer(setting, [matrix()], 0.25)
    assert type(optimizer) is cls
    assert optimizer.param_groups[0]["lr"] == rate


def test_the_papers_adam_has_no_decay() -> None:
    group = make_optimizer("adam", [matrix()], 2.0e-5).param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (2.0e-5, (0.9, 0.999), 0)


def test_bitsandbytes_is_accepted() -> None:
    setting = {"class_path": "bitsandbytes.optim.AdamW8bit", "init_args": {"betas": [0.9, 0.95]}}
    assert optimizer_issues(setting, COSINE, 1.0e-4) == []
    assert type(make_optimizer(setting, [matrix()], 1.0e-4)).__name__ == "AdamW8bit"


def test_a_schedule_is_made_for_the_optimizer() -> None:
    optimizer = make_optimizer("adam", [matrix()], 1.0)
    scheduler = make_scheduler(COSINE, optimizer)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


@pytest.mark.parametrize("module", ["act_lightning.training.optimizers", "act_lightning.schedules"])  # its first home
def test_a_schedule_over_the_whole_run_is_told_its_updates(module: str) -> None:
    setting = {"class_path": f"{module}.WarmupCosine", "init_args": {"warmup": 0.5, "final": 0.25}}
    assert optimizer_issues("adam", setting, 0.1) == []
    optimizer, rates = make_optimizer("adam", [matrix()], 1.0), []
    scheduler = make_scheduler(setting, optimizer, updates=4)
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.25])


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_one_kernel_makes_the_same_updates(name: str) -> None:
    found = []
    for fused in (False, True):
        weights = nn.Parameter(torch.linspace(-1, 1, 1000).view(10, 100).clone())
        optimizer = make_optimizer(name, [weights], 1.0e-2, fused=fused)
        assert bool(optimizer.param_groups[0]["fused"]) is fused
        for step in range(5):
            weights.grad = torch.sin(weights.detach() * (step + 3))
            optimizer.step()
        found.append(weights.detach())
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-7)
    assert not torch.equal(found[0], torch.linspace(-1, 1, 1000).view(10, 100))


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", ["Adam8bit", "AdamW8bit", "PagedAdamW8bit"])
def test_moments_of_eight_bits_on_a_cpu(name: str) -> None:
    """One step with all gradients alike is as long as torch's; matrices of 4,096 elements have moments of a byte."""
    setting = {"class_path": f"bitsandbytes.optim.{name}", "init_args": {"weight_decay": 0.0}}
    eight, plain = (nn.Parameter(torch.ones(64, 64)) for _ in range(2))
    optimizers = [make_optimizer(setting, [eight], 1.0e-2), make_optimizer("adam", [plain], 1.0e-2)]
    for weights, optimizer in zip((eight, plain), optimizers, strict=True):
        weights.grad = torch.full_like(weights, 0.5)
        optimizer.step()
    assert optimizers[0].state[eight]["state1"].dtype == torch.uint8
    torch.testing.assert_close(eight.detach(), plain.detach(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("setting", "name", "words"),
    [
        ("sgd", "model.optimizer", "must be adam or adamw"),
        ({"class_path": "AdamW"}, "model.optimizer", "a dotted name"),
        ({"class_path": ADAMW, "lr": 1}, "model.optimizer", "class_path"),
        ({"class_path": "torch.optim.Nothing"}, "model.optimizer.class_path", "must be importable"),
        ({"class_path": "no.such.module.Adam"}, "model.optimizer.class_path", "must be importable"),
        ({"class_path": "torch.nn.Linear"}, "model.optimizer.class_path", "must be a kind of Optimizer"),
        ({"class_path": ADAMW, "init_args": [1]}, "model.optimizer.init_args", "must be a mapping"),
        ({"class_path": ADAMW, "init_args": {"rate": 1}}, "model.optimizer.init_args", "rate"),
        ({"class_path": ADAMW, "init_args": {"lr": -1}}, "model.optimizer.init_args", "Invalid learning rate"),
    ],
)
def test_an_optimizer_that_cannot_be_made_is_a_issue(setting: Any, name: str, words: str) -> None:
    (issue,) = optimizer_issues(setting, COSINE, 0.1)
    assert issue.setting == name
    assert words in issue.problem
    with pytest.raises(ActError, match=r"model\.optimizer"):
        make_optimizer(setting, [matrix()], 0.1)


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"class_path": "torch.optim.lr_scheduler.Nothing"}, "model.lr_scheduler.class_path"),
        ({"class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau"}, "model.lr_scheduler.class_path"),
        ({"class_path": ADAMW}, "model.lr_scheduler.class_path"),
        ({"class_path": "torch.optim.lr_scheduler.StepLR"}, "model.lr_scheduler.init_args"),
        (
            {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": {"max_lr": 1}},
            "model.lr_scheduler.init_args",
        ),
    ],
)
def test_a_schedule_that_cannot_be_made_is_a_issue(setting: dict[str, Any], name: str) -> None:
    (issue,) = optimizer_issues("adam", setting, 0.1)
    assert issue.setting == name


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_rates_that_are_none(rate: float) -> None:
    (issue,) = optimizer_issues("adam", COSINE, rate)
    assert issue.setting == "model.learning_rate"


def test_faults_of_optimizer_and_schedule_come_together() -> None:
    issues = optimizer_issues("sgd", {"class_path": ADAMW}, -1)
    assert [issue.setting for issue in issues] == [
        "model.learning_rate",
        "model.optimizer",
        "model.lr_scheduler.class_path",
    ]
