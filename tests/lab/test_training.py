"""The loop by its properties: what is learned, what is drawn, how fast."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from act_lightning.lab.training import Samples, Stage, encode, schedule, train
from tests.tiny import END_ID, START_ID, tiny_model

ROWS = [{"prompt": f"{i} + 1 =", "answer": f"{i + 1}"} for i in range(8)] + [
    {"prompt": "What?", "answer": "three. " * 5}
]


def samples(tokenizer: PreTrainedTokenizerFast, whole_text: bool = False) -> Samples:
    return encode(tokenizer, ROWS, [1.0] * 8 + [0.0], whole_text)


def test_answers_and_their_end_are_labeled(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = samples(tokenizer)
    for ids, labels, row in zip(encoded.ids, encoded.labels, ROWS, strict=True):
        assert labels[labels != -100].tolist() == [*tokenizer(row["answer"]).input_ids, END_ID]
        assert torch.equal(ids[labels != -100], labels[labels != -100])
    whole = samples(tokenizer, whole_text=True)
    assert (whole.labels[:, 0] == START_ID).all()
    assert ((whole.labels != -100).sum(1) == whole.lengths).all()


def test_draws_follow_weights_and_put_the_short_first(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = samples(tokenizer)
    updates = encoded.draw(3, 64)
    assert updates.shape == (3, 64)
    assert set(updates.flatten().tolist()) == set(range(8)), "the last has weight 0"
    assert (encoded.lengths[updates].diff(dim=1) >= 0).all()


def test_halves_give_the_gradient_of_the_whole_update(tokenizer: PreTrainedTokenizerFast) -> None:
    """Plain SGD is out of reach, so by AdamW's first update, whose sign is the gradient's."""
    one, other = tiny_model("qwen2"), tiny_model("qwen2")
    encoded = encode(tokenizer, ROWS, [1.0] * 9, whole_text=False)
    torch.manual_seed(5)
    train(one, encoded, Stage(1, 8, 1e-3, 1.0), "test")
    torch.manual_seed(5)
    drawn = torch.multinomial(encoded.weights, 8, replacement=True)
    logits = other(input_ids=encoded.ids[drawn]).logits[:, :-1]
    cross_entropy(logits.flatten(0, 1), encoded.labels[drawn, 1:].flatten(), ignore_index=-100).backward()
    torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    torch.optim.AdamW(other.parameters(), 1e-3, (0.9, 0.98), weight_decay=0.01).step()
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@torch.no_grad()
def mean_loss(model: torch.nn.Module, encoded: Samples) -> float:
    """One sample at a time, without padding."""
    losses = []
    for ids, labels, length in zip(encoded.ids, encoded.labels, encoded.lengths, strict=True):
        logits = model(ids[None, :length]).logits[0, :-1]
        losses.append(cross_entropy(logits, labels[1:length], reduction="none")[labels[1:length] != -100])
    return float(torch.cat(losses[:8]).mean())


def test_loss_falls_and_is_repeatable(tokenizer: PreTrainedTokenizerFast) -> None:
    model, again, encoded = tiny_model("qwen2"), tiny_model("qwen2"), samples(tokenizer)
    before = mean_loss(model, encoded)
    for one in (model, again):
        torch.manual_seed(5)
        train(one, encoded, Stage(40, 8, 5e-3, 1.0), "test")
    assert mean_loss(model, encoded) < 0.2 * before
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not model.training


def test_first_update_is_adams(tokenizer: PreTrainedTokenizerFast) -> None:
    """Adam's first update is the learning rate in the direction of the gradient's sign: all of it shows."""
    model, encoded = tiny_model("qwen2"), samples(tokenizer)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, encoded, Stage(1, 8, 1e-3, 1.0), "test")
    after = [parameter.detach() for parameter in model.parameters()]
    moved = torch.cat([(a - b * (1 - 1e-5)).abs().flatten() for a, b in zip(after, before, strict=True)])
    assert float(moved.max()) == pytest.approx(1e-3, rel=1e-3)
    assert 0 < float(moved.median()) <= 1e-3 * 1.001


@pytest.mark.parametrize("steps", [2, 20, 500])
def test_schedule_rises_then_falls(steps: int) -> None:
    shares = [schedule(step, steps) for step in range(steps)]
    peak = shares.index(1.0)
    assert all(0 < share <= 1 for share in shares)
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)
    assert peak <= 0.05 * steps
    assert schedule(steps, steps) == pytest.approx(0)
