"""Implementations of attention, and compiled layers: the same training, whatever computes it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from act_lightning.errors import ActError
from act_lightning.module import AbilityTransferModule
from act_lightning.training.attention_compile import attention_compile_issues, compile_layers, set_attention
from act_lightning.training.loss import answer_loss
from tests.front_door import basic, changed, run
from tests.loops import packed, padded, random_samples
from tests.reference import act as reference
from tests.tiny import save_model, sibling_of, tiny_model, tiny_tokenizer, write_jsonl
from tests.training.processes import weights
from tests.training.test_finetuning import fit

SAMPLES = random_samples(6, longest=40, seed=3)
# torch's tracer looks at gradients of what is no leaf, and warns itself of it (2026-11-25, torch 2.13).
traced = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
EAGERLY: dict[str, Any] = {"backend": "aot_eager"}  # traces, but leaves out a minute of the C++ compiler
compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch's default compiles with g++")


@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3_text"])
def test_packed_samples_stay_apart(architecture: str, attention: str) -> None:
    model = tiny_model(architecture)
    set_attention(model, attention)
    assert attention in ("auto", model.config._attn_implementation)
    (batch,) = packed(SAMPLES, rows=6)
    loss, tokens = answer_loss(model, batch)
    expected = float(reference.mean_loss(model, SAMPLES).detach())
    assert float(loss.detach()) / tokens == pytest.approx(expected, rel=1e-6)


def test_attention_reaches_the_model_that_is_trained(tmp_path: Path) -> None:
    folder = save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "target")
    ours = fit(folder, padded(SAMPLES), module={"attention": "eager"})
    assert ours.language_model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("attention", "words"),
    [("fast", "must be one of"), ("paged|eager", "must be one of"), ("kernels-community/flash-attn", "must be one of")]
    + [(f"flash_attention_{number}", "must be installed") for number in (2, 3, 4)],
)
def test_attention_that_is_not_there_is_refused(attention: str, words: str) -> None:
    (issue,) = AbilityTransferModule("lab:specialist", attention=attention).issues()
    assert issue.setting == "model.attention"
    assert words in issue.problem
    assert attention_compile_issues("sdpa", False) == []


def test_attention_that_a_model_lacks_is_refused() -> None:
    """Transformers computes Gemma 2's capped attention by eager code only."""
    with pytest.raises(ActError, match=r"model\.attention = 'sdpa': must be an implementation that gemma2 has"):
        set_attention(tiny_model("gemma2"), "sdpa")


@pytest.mark.parametrize("setting", ["fast", 1.5, {"backend": "no such backend"}, {"speed": 11}])
def test_settings_of_compiling_that_are_none(setting: Any) -> None:
    (issue,) = attention_compile_issues("auto", setting)
    assert issue.setting == "model.compile"
    for correct in (True, False, {"mode": "max-autotune"}):
        assert attention_compile_issues("auto", correct) == []


@traced
@pytest.mark.slow
def test_compiled_layers_compute_the_same(tmp_path: Path) -> None:
    """With dynamic lengths, checkpointed activations, and names that stay; one graph for all layers."""
    plain, compiled = (tiny_model("qwen2", num_hidden_layers=6).train() for _ in range(2))
    graphs = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_layers(compiled, {"backend": counting})
    assert dict(compiled.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    for samples in (SAMPLES[:1], SAMPLES[1:3], SAMPLES[3:], SAMPLES):
        (batch,) = packed(samples, rows=6)
        losses = [answer_loss(model, batch)[0] for model in (plain, compiled)]
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
        for loss in losses:
            loss.backward()
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-5, msg=name)
    assert 0 < len(graphs) < 6, "fewer graphs than layers, though lengths differ"


@traced
@pytest.mark.slow
@pytest.mark.parametrize("setting", [EAGERLY, pytest.param(True, marks=compiler)], ids=["eager", "inductor"])
def test_compiled_layers_are_trained_injected_and_exported(setting: Any, tmp_path: Path) -> None:
    target = tiny_model("qwen2")
    save_model(target, tiny_tokenizer(), tmp_path / "target")
    save_model(sibling_of(target, seed=1), tiny_tokenizer(), tmp_path / "source")
    rows = [{"prompt": f"Say {n}", "answer": "one " * (1 + 7 * n % 23)} for n in range(32)]
    data, found = write_jsonl(tmp_path / "d.jsonl", rows), []
    for name, compiled in (("plain", False), ("compiled", setting)):
        root = tmp_path / name
        root.mkdir()
        config = basic(root, tmp_path / "target", tmp_path / "source", data)
        config["model"] |= {"compile": compiled, "gradient_checkpointing": True}
        config["data"] |= {"batch_size": 4}
        outcome = run("fit", changed(config, "trainer.accumulate_grad_batches", 4))
        assert outcome.status == 0, outcome.err
        found.append(weights(root / "run" / "model"))
    assert found[0].keys() == found[1].keys()
    for name, values in found[0].items():
        torch.testing.assert_close(found[1][name], values, rtol=0, atol=1e-5, msg=name)
