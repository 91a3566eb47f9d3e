"""Loss and gradients in chunks of logits, against all logits of the model's own forward pass at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from act_lightning.data.batches import batch_to_device, predicting_positions, sample_lengths
from act_lightning.training.loss import answer_logits, answer_loss, score_answers
from tests.loops import messages, packed, padded, random_samples
from tests.reference import act as reference
from tests.reference.act import IGNORED
from tests.tiny import VOCABULARY, tiny_model

TAILS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"final_logit_softcapping": 2.0},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 3.0},
    "gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
}
SAMPLES = random_samples(6, longest=40, seed=3)


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    found = {name: values.grad.clone() for name, values in model.named_parameters() if values.grad is not None}
    model.zero_grad()
    return found


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        largest = float(values.abs().max())
        torch.testing.assert_close(found[name], values, rtol=0, atol=tolerance * largest + 1e-9, msg=name)


@pytest.mark.parametrize("at_once", [None, 7, 1])
@pytest.mark.parametrize("architecture", TAILS)
def test_loss_and_gradients_are_those_of_all_logits(architecture: str, at_once: int | None) -> None:
    model = tiny_model(architecture, **TAILS[architecture]).train()
    for batch in (*padded(SAMPLES, rows=6), *(packed(SAMPLES, rows=6) if architecture == "llama" else ())):
        loss, tokens = answer_loss(model, batch, at_once)
        (loss / tokens).backward()
        found = gradients(model)
        expected = reference.mean_loss(model, SAMPLES)
        expected.backward()
        assert float(loss.detach()) / tokens == pytest.approx(float(expected.detach()), rel=1e-6)
        assert_close(found, gradients(model), 5e-6)


def test_what_the_host_has_found_gives_the_same_loss_to_the_bit() -> None:
    """Whether rows are padded on either side, packed, of one length, or one packed sample; and twice is once."""
    model, cpu = tiny_model("llama").train(), torch.device("cpu")
    batches = [padded(SAMPLES, 6, left)[0] for left in (False, True)]
    for batch in (*batches, packed(SAMPLES, 6)[0], padded(SAMPLES[:1])[0], packed(SAMPLES[:1])[0]):
        prepared = batch_to_device(batch, cpu)
        losses = [answer_loss(model, either) for either in (batch, prepared, batch_to_device(prepared, cpu))]
        assert {tokens for _, tokens in losses} == {predicting_positions(prepared).tokens}
        assert torch.equal(sample_lengths(prepared), sample_lengths(batch))
        assert len({float(loss.detach()) for loss, _ in losses}) == 1


@pytest.mark.parametrize("at_once", [None, 5])
def test_right_tokens_are_those_of_all_logits(at_once: int | None) -> None:
    model = tiny_model("gemma2", final_logit_softcapping=2.0)
    (batch,) = padded(SAMPLES, rows=6)
    loss, right, tokens = score_answers(model, batch, at_once)
    with torch.no_grad():
        guesses = [(model(torch.tensor([ids])).logits[0].argmax(-1).tolist(), labels) for ids, labels in SAMPLES]
    pairs = [(guess, label) for guess, labels in guesses for guess, label in zip(guess, labels[1:], strict=False)]
    assert int(right) == sum(guess == label for guess, label in pairs)
    assert tokens == sum(label != IGNORED for _, label in pairs)
    assert float(loss) == pytest.approx(float(reference.mean_loss(model, SAMPLES).detach()) * tokens, rel=1e-5)
    assert not loss.requires_grad


def test_a_head_of_its_own_kind_is_given_all_answers_at_once() -> None:
    """A model that does with its logits what no config says: found out, said once, and right nevertheless."""
    plain, odd = tiny_model("llama"), tiny_model("llama")
    forward = type(odd).forward

    def doubled(*arguments: Any, **named: Any) -> Any:
        output = forward(odd, *arguments, **named)
        output.logits = output.logits * 2
        return output

    odd.forward = doubled
    (batch,) = padded(SAMPLES, rows=6)
    with messages() as said:
        losses = [float(answer_loss(odd, batch, 7)[0].detach()) for _ in range(2)]
    assert len(said) == 1
    assert "in an unknown way" in said[0]
    plain.lm_head.weight.data *= 2
    assert losses == [pytest.approx(float(answer_loss(plain, batch)[0].detach()), rel=1e-6)] * 2


def test_without_answers_every_parameter_takes_part() -> None:
    model = tiny_model("qwen2").train()
    (batch,) = padded([([5, 6, 7], [IGNORED] * 3)])
    loss, tokens = answer_loss(model, batch)
    loss.backward()
    assert (float(loss.detach()), tokens) == (0.0, 0)
    found = gradients(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert not any(bool(values.any()) for values in found.values())


def test_gradients_are_given_once() -> None:
    loss, _ = answer_loss(tiny_model("llama").train(), padded(SAMPLES, rows=6)[0])
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        loss.backward()


def test_frozen_heads_get_no_gradient_and_pass_it_on() -> None:
    model = tiny_model("llama").train()
    (batch,) = padded(SAMPLES, rows=6)
    answer_loss(model, batch, 7)[0].backward()
    expected = gradients(model)
    del expected["lm_head.weight"]
    model.lm_head.weight.requires_grad_(False)
    answer_loss(model, batch, 7)[0].backward()
    assert_close(gradients(model), expected)


def test_heads_whose_weight_is_a_view_pass_on_its_gradient() -> None:
    """As under FSDP1, which may put views of one flat parameter in the place of parameters."""
    model = tiny_model("llama").train()
    (batch,) = padded(SAMPLES, rows=6)
    answer_loss(model, batch, 7)[0].backward()
    expected = gradients(model)["lm_head.weight"]
    flat = torch.nn.Parameter(model.lm_head.weight.detach().flatten().clone())
    del model.lm_head.weight
    model.lm_head.weight = flat.view_as(expected)
    answer_loss(model, batch, 7)[0].backward()
    assert flat.grad is not None
    torch.testing.assert_close(flat.grad.view_as(expected), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_many_chunks_lose_no_more_than_one(dtype: torch.dtype) -> None:
    """Weights in bfloat16 get the sum of their chunks' gradients rounded once."""
    exact, model = tiny_model("llama").train(), tiny_model("llama", dtype=dtype).train()
    exact.load_state_dict(model.state_dict())
    (batch,) = padded(SAMPLES, rows=6)
    errors = []
    for at_once in (None, 1):
        answer_loss(exact, batch)[0].backward()
        answer_loss(model, batch, at_once)[0].backward()
        wanted, found = gradients(exact)["lm_head.weight"], gradients(model)["lm_head.weight"].float()
        errors.append(float((found - wanted).norm() / wanted.norm()))
    assert errors[1] <= max(2 * errors[0], 1e-6)


@pytest.mark.parametrize("at_once", [None, 7])
def test_float16_loses_no_more_of_small_gradients_than_all_logits_do(at_once: int | None) -> None:
    """Answers that are almost sure, and a loss that is scaled as a ``GradScaler`` does, with autocast."""
    model, scale = tiny_model("llama", tie_word_embeddings=False).train(), 2.0**16
    model.lm_head.weight.data *= 500  # sure of one token or another
    (batch,) = padded(SAMPLES, rows=6)
    with torch.autocast("cpu", torch.float16), torch.no_grad():
        likeliest = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1)
    wanted = torch.nn.functional.pad(likeliest[:, :-1], (1, 0))
    batch = {**batch, "labels": torch.where(batch["labels"] == IGNORED, IGNORED, wanted)}
    with torch.autocast("cpu", torch.float16):
        expected = cross_entropy(*answer_logits(model, batch), reduction="sum")
    (expected * scale).backward()
    of_all = gradients(model)
    with torch.autocast("cpu", torch.float16):
        loss, tokens = answer_loss(model, batch, at_once, scale)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float(loss.detach()) / tokens < 1e-3
    (loss * scale).backward()
    assert_close(gradients(model), of_all, 2e-3)


class LargestLogits(TorchDispatchMode):
    """Notes the most rows that any tensor as wide as the vocabulary has, in forward and backward passes."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if torch.is_tensor(tensor) and tensor.shape[-1:] == (VOCABULARY,) and tensor.ndim > 1:
                self.rows = max(self.rows, tensor.numel() // VOCABULARY)
        return out


def test_no_more_logits_are_alive_than_asked_for() -> None:
    """Of some 60 answer tokens, in forward and backward passes; the whole weight's gradient has a row a feature."""
    model = tiny_model("llama").train()
    (batch,) = padded(SAMPLES, rows=6)
    (tokens,) = {answer_loss(model, batch)[1]}
    most = {}
    for at_once in (None, 7):
        with LargestLogits() as watch:
            answer_loss(model, batch, at_once)[0].backward()
        most[at_once] = watch.rows
    features = model.config.hidden_size  # of the transposed weight, which is as wide as the vocabulary
    assert tokens > features > 7
    assert most == {None: tokens, 7: features}
