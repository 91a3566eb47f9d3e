"""The stand-in device by itself: run by ``test_standin.py`` in a process of its own."""

from __future__ import annotations

import copy
import io
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding

from tests.standin.device import DEVICE, NAME
from tests.standin.records import record_host_linears, record_waits


def ones(*size: int) -> Tensor:
    return torch.ones(size, device=DEVICE)


@pytest.mark.parametrize(
    "mix",
    [
        lambda: ones(3) + torch.ones(3),
        lambda: torch.ones(3) + ones(),
        lambda: torch.ones(3).add_(ones(3)),
        lambda: torch.tensor(1.0).add_(ones()),
        lambda: ones(3, 3) @ torch.ones(3, 3),
        lambda: torch.cat([ones(3), torch.ones(3)]),
        lambda: ones(3).index_select(0, torch.tensor([0])),
        lambda: embedding(torch.tensor([0]), ones(3, 3)),
        lambda: torch.where(torch.ones(3, dtype=torch.bool), ones(3), 0.0),
        lambda: ones(3).masked_fill(torch.ones(3, dtype=torch.bool), 0),
        lambda: torch.ones(3)[torch.tensor([0], device=DEVICE)],
        lambda: ones(3).index_put_((torch.tensor([0, 1]),), torch.ones(2)),
        lambda: torch.addcmul(ones(3), torch.tensor(1.0), torch.tensor(1.0)),
        lambda: torch.randn(3, device=DEVICE, generator=torch.Generator()),
        lambda: torch.equal(ones(3), torch.ones(3)),
    ],
)
def test_refuses_what_cuda_refuses(mix: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match=r"same device|device type for generator|too many CPU scalars"):
        mix()


def test_allows_what_cuda_allows() -> None:
    values = ones(3) * torch.tensor(2.0) + 1
    values[torch.tensor([0])] = 5
    values[1:2] = torch.tensor([7.0])
    assert values[torch.tensor([True, True, False])].tolist() == [5, 7]
    assert torch.where(ones(3) > 0, torch.tensor(1.0), torch.tensor(2.0)).tolist() == [1, 1, 1]
    with pytest.raises(TypeError, match="numpy"):
        values.numpy()


def tied_model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4), nn.SiLU(), nn.Linear(4, 10, bias=False))
    model[3].weight = model[0].weight
    return model


def test_training_gives_the_bits_of_the_cpu_and_keeps_ties() -> None:
    moved, plain = tied_model(), tied_model()
    parameter, ids = moved[0].weight, torch.tensor([[1, 2, 3]])
    moved.to(DEVICE)
    assert moved[3].weight is parameter is moved[0].weight
    assert parameter.device == DEVICE
    for model in (moved, plain):
        device = model[0].weight.device
        optimizer = torch.optim.AdamW(model.parameters(), 0.01, fused=True)
        for _ in range(3):
            cross_entropy(model(ids.to(device)).flatten(0, 1), ids.to(device).flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    moved.to("cpu")
    assert moved[0].weight is parameter
    assert all(torch.equal(*pair) for pair in zip(moved.parameters(), plain.parameters(), strict=True))


def test_autocast_casts_as_on_cuda() -> None:
    model = tied_model().to(DEVICE)
    with torch.autocast(NAME, dtype=torch.bfloat16):
        logits = model(torch.tensor([[1]], device=DEVICE))
        dtypes = [logits.dtype, logits.softmax(-1).dtype, logits.sum().dtype, (logits * 2).dtype]
        logits.float().sum().backward()
    assert dtypes == [torch.bfloat16, torch.float32, torch.float32, torch.bfloat16]
    assert model[0].weight.grad is not None
    assert model[0].weight.grad.dtype == torch.float32


def test_copies_and_files() -> None:
    values = torch.arange(4.0, device=DEVICE)
    copied = copy.deepcopy({"all": values, "end": values[2:]})
    file = io.BytesIO()
    torch.save(copied, file)
    for device in (NAME, "cpu"):
        file.seek(0)
        loaded = torch.load(file, map_location=device)
        assert loaded["end"].device.type == device
        assert loaded["end"].tolist() == [2, 3]


def test_random_numbers_are_the_device_s_own() -> None:
    torch.manual_seed(0)
    on_cpu = torch.rand(3)
    torch.manual_seed(0)
    drawn = torch.rand(3, device=DEVICE), torch.dropout(ones(8), 0.5, True)
    assert torch.equal(torch.rand(3), on_cpu)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3, device=DEVICE), drawn[0])
    assert torch.equal(torch.dropout(ones(8), 0.5, True), drawn[1])


def test_waits_are_counted() -> None:
    values = ones(3)
    with record_waits() as waits:
        float(values[0]), values.tolist(), values[values > 0], values.cpu(), torch.ones(3).to(DEVICE)
        torch.ones(3).pin_memory().to(DEVICE, non_blocking=True), torch.ones(3).to(DEVICE, non_blocking=True)
    kinds = Counter[str]()
    for place, count in waits.items():
        kinds[place.what] += count
    assert kinds == {"_local_scalar_dense": 1, "copy to host": 2, "nonzero": 1, "copy to device": 2}


def test_a_copy_that_the_host_does_not_wait_for_is_there_later() -> None:
    with record_waits() as waits:
        copied = ones(3).to("cpu", non_blocking=True)
        again, too_early = copied.to(DEVICE, non_blocking=True), ones(3).to("cpu", non_blocking=True)
    assert waits.total() == 0
    assert too_early.isnan().all()
    assert again.tolist() == too_early.tolist() == [1, 1, 1]  # the first waits


def test_matrices_multiplied_on_the_host_are_counted() -> None:
    linear, on_device = nn.Linear(2, 2), nn.Linear(2, 2).to(DEVICE)
    with record_host_linears() as linears:
        linear(torch.ones(1, 2)), on_device(ones(1, 2))
    assert linears.total() == 1
