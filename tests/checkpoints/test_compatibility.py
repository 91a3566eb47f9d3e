"""Who is no sibling, and why."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from act_lightning.checkpoints.compatibility import config_differences, sibling_issues, tokenizer_issues
from act_lightning.errors import ConfigIssue
from tests.tiny import save_model, tiny_config, tiny_model, tiny_tokenizer

SETTING = "profile.sources[0].model"


def faults_of(tmp_path: Path, architecture: str, weights: bool, **changes: Any) -> list[ConfigIssue]:
    target, source = tmp_path / "target", tmp_path / "source"
    save_model(tiny_model("llama"), tiny_tokenizer(), target)
    if weights:
        save_model(tiny_model(architecture, **changes), tiny_tokenizer(), source)
    else:
        tiny_config(architecture, **changes).save_pretrained(source)
    return sibling_issues(target, source, SETTING)


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize(
    ("architecture", "changes", "problem"),
    [
        ("mistral", {}, "the target's architecture, llama, and is mistral"),
        ("llama", {"intermediate_size": 64}, r"mlp\.gate_proj\.weight \(64, 32\), not \(48, 32\)"),
        ("llama", {"num_hidden_layers": 3}, "in one of the two only: model.layers.2.*and 4 more"),
        ("llama", {"attention_bias": True}, r"self_attn\.k_proj\.bias"),
    ],
)
def test_no_sibling(architecture: str, changes: dict[str, Any], problem: str, weights: bool, tmp_path: Path) -> None:
    (issue,) = faults_of(tmp_path, architecture, weights, **changes)
    assert issue.setting == SETTING
    assert issue.hint
    assert re.search(problem, issue.problem)


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"vocab_size": 320}])
def test_a_source_may_be_tied_or_have_another_vocabulary(changes: dict[str, Any], tmp_path: Path) -> None:
    assert faults_of(tmp_path, "llama", True, **changes) == []


def test_a_tied_target_has_no_place_for_two_matrices(target_folder: Path, tmp_path: Path) -> None:
    tied = save_model(tiny_model("llama", tie_word_embeddings=True), tiny_tokenizer(), tmp_path / "tied")
    (issue,) = sibling_issues(tied, target_folder, SETTING)
    assert "must tie its embedding and lm_head as the target does" in issue.problem
    assert issue.hint.startswith("Untie the target")


def test_siblings(target_folder: Path, source_folder: Path) -> None:
    assert sibling_issues(target_folder, source_folder, SETTING) == []
    assert config_differences(target_folder, source_folder) == []


def test_weights_that_are_not_what_the_config_says(target_folder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(target_folder, tmp_path / "source")
    tiny_config("llama", num_hidden_layers=1).save_pretrained(source)
    (issue,) = sibling_issues(target_folder, source, SETTING)
    assert "must hold parameters of the model only" in issue.problem


def test_config_differences_are_told(target_folder: Path, tmp_path: Path) -> None:
    config = tiny_config("llama", rms_norm_eps=1e-5, max_position_embeddings=1024, rope_theta=1e6, bos_token_id=5)
    config.save_pretrained(tmp_path)
    told = {difference.key: str(difference) for difference in config_differences(target_folder, tmp_path)}
    assert {"rms_norm_eps", "max_position_embeddings", "rope_parameters", "bos_token_id"} <= told.keys()
    assert told["rms_norm_eps"] == "rms_norm_eps: 1e-06 in the target, 1e-05 in the source"


def test_same_text_other_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    other = tiny_tokenizer()
    other.add_tokens([AddedToken("<|tool|>"), "answer"])
    texts = ["What is the sum?", "The answer is three.", "The answer is two."]
    assert tokenizer_issues(tokenizer, other, texts[:1], False, SETTING) == []
    (issue,) = tokenizer_issues(tokenizer, other, texts, False, SETTING)
    assert (issue.setting, issue.value) == (SETTING, texts[1])
    assert f" {other.convert_tokens_to_ids('answer')}, " in issue.problem


def test_texts_that_end_differently(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("three").input_ids
    (issue,) = tokenizer_issues(tokenizer, lambda text, **_: {"input_ids": [*ids, 2]}, ["three"], True, SETTING)
    assert f"[2] from token {len(ids)} on" in issue.problem
