"""Models that are siblings or not, and vocabularies matched by token."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from act_lightning.checkpoints.compatibility import (
    config_differences,
    match_rows,
    match_vocabularies,
    read_vocabulary,
    sibling_issues,
    tokenizer_issues,
)
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.planning.pair_checks import config_notes
from tests.model_types import tiny_type_config
from tests.tiny import VOCABULARY, save_model, tiny_config, tiny_model, tiny_tokenizer

SETTING = "profile.sources[0].model"


def issues_of(tmp_path: Path, architecture: str, weights: bool, **changes: Any) -> list[ConfigIssue]:
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
    (issue,) = issues_of(tmp_path, architecture, weights, **changes)
    assert issue.setting == SETTING
    assert issue.hint
    assert re.search(problem, issue.problem)


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"vocab_size": 320}])
def test_a_source_may_be_tied_or_have_another_vocabulary(changes: dict[str, Any], tmp_path: Path) -> None:
    assert issues_of(tmp_path, "llama", True, **changes) == []


def test_a_tied_target_has_no_place_for_two_matrices(target_folder: Path, tmp_path: Path) -> None:
    tied = save_model(tiny_model("llama", tie_word_embeddings=True), tiny_tokenizer(), tmp_path / "tied")
    (issue,) = sibling_issues(tied, target_folder, SETTING)
    assert "must tie its embedding and lm_head as the target does" in issue.problem
    assert issue.hint.startswith("Untie the target")


def test_siblings(target_folder: Path, source_folder: Path) -> None:
    assert sibling_issues(target_folder, source_folder, SETTING) == []
    assert config_differences(target_folder, source_folder) == {}


def test_weights_that_are_not_what_the_config_says(target_folder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(target_folder, tmp_path / "source")
    tiny_config("llama", num_hidden_layers=1).save_pretrained(source)
    (issue,) = sibling_issues(target_folder, source, SETTING)
    assert "must hold parameters of the model only" in issue.problem


def test_config_differences_are_told(target_folder: Path, tmp_path: Path) -> None:
    config = tiny_config("llama", rms_norm_eps=1e-5, max_position_embeddings=1024, rope_theta=1e6, bos_token_id=5)
    config.save_pretrained(tmp_path)
    differences = config_differences(target_folder, tmp_path)
    assert {"rms_norm_eps", "max_position_embeddings", "rope_parameters", "bos_token_id"} <= differences.keys()
    assert differences["rms_norm_eps"] == (1e-06, 1e-05)


def mixture_folder(place: Path, **changes: Any) -> Path:
    model = AutoModelForCausalLM.from_config(tiny_type_config("qwen3_moe", **changes), dtype=torch.float32)
    return save_model(model, tiny_tokenizer(), place)


def test_siblings_have_the_same_experts(tmp_path: Path) -> None:
    target = mixture_folder(tmp_path / "target")
    (issue,) = sibling_issues(target, mixture_folder(tmp_path / "more", num_experts=8, num_local_experts=8), SETTING)
    assert (issue.setting, issue.value) == (SETTING, str(tmp_path / "more"))
    for name in ("experts.gate_up_proj (8, 48, 32), not (4, 48, 32)", "mlp.gate.weight (8, 32), not (4, 32)"):
        assert name in issue.problem
    (issue,) = sibling_issues(target, mixture_folder(tmp_path / "wide", moe_intermediate_size=16), SETTING)
    assert "experts.down_proj (4, 32, 16), not (4, 32, 24)" in issue.problem


def test_a_source_may_route_to_more_experts_which_is_told(tmp_path: Path) -> None:
    target = mixture_folder(tmp_path / "target")
    source = mixture_folder(tmp_path / "source", num_experts_per_tok=3)
    assert sibling_issues(target, source, SETTING) == []
    (note,) = config_notes(target, source, SETTING)
    assert (note.level, note.problem) == ("note", "num_experts_per_tok: 2 in the target, 3 in the source")


@pytest.mark.parametrize("multimodal_target", [True, False])
def test_a_text_and_a_multimodal_checkpoint_of_one_family(multimodal_target: bool, tmp_path: Path) -> None:
    """Qwen3.5's text has the same names in both; Gemma 3's has not, which are told."""
    for model_type in ("qwen3_5", "gemma3"):
        config = tiny_type_config(model_type)
        both = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        save_model(both, tiny_tokenizer(), tmp_path / model_type / "both")
        text = AutoModelForCausalLM.from_config(config.get_text_config(), dtype=torch.float32)
        save_model(text, tiny_tokenizer(), tmp_path / model_type / "text")
    pair = ("both", "text") if multimodal_target else ("text", "both")
    target, source = (tmp_path / "qwen3_5" / name for name in pair)
    assert sibling_issues(target, source, SETTING) == []
    assert config_notes(target, source, SETTING) == []
    target, source = (tmp_path / "gemma3" / name for name in pair)
    (issue,) = sibling_issues(target, source, SETTING)
    types = ("gemma3", "gemma3_text") if multimodal_target else ("gemma3_text", "gemma3")
    assert f"the target's architecture, {types[0]}, and is {types[1]}, of the same family" in issue.problem
    assert re.search(r"in one of the two only: model\.embed_tokens\.weight, .* and \d+ more", issue.problem)
    assert "copy the language_model of the one into a model of the other's class" in issue.hint


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


def model_folder(place: Path, size: int = VOCABULARY, *added: str) -> Path:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in added])
    return save_model(tiny_model("llama", vocab_size=size), tokenizer, place)


def test_one_added_token_on_either_side(tmp_path: Path) -> None:
    plain, more = model_folder(tmp_path / "plain"), model_folder(tmp_path / "more", 301, "<tool>")
    match = match_vocabularies(plain, more)
    assert match is not None
    assert match.names == {"model.embed_tokens.weight", "lm_head.weight"}
    assert torch.equal(match.rows, torch.arange(300))
    assert match.to_json() == {"stayed": 0, "tokens": [], "without_token": 0}
    match = match_vocabularies(more, plain)
    assert match is not None
    assert match.rows.tolist() == [*range(300), -1]
    assert match.to_json() == {"stayed": 1, "tokens": ["<tool>"], "without_token": 0}


def test_padding_and_tokens_that_are_numbered_otherwise(tmp_path: Path) -> None:
    target, source = (
        model_folder(tmp_path / "t", 320, "<a>", "<b>"),
        model_folder(tmp_path / "s", 304, "<b>", "<a>", "<c>"),
    )
    match = match_vocabularies(target, source)
    assert match is not None
    assert match.rows.tolist() == [*range(300), 301, 300, *[-1] * 18]
    assert (match.tokens, match.unnamed, match.missing) == ((), 18, 18)


def test_one_size(tmp_path: Path) -> None:
    """Rows are matched by token where the tokenizers differ; padding of both is matched by number."""
    target, other = model_folder(tmp_path / "t", 310, "<a>", "<b>"), model_folder(tmp_path / "s", 310, "<b>", "<a>")
    assert match_vocabularies(target, model_folder(tmp_path / "same", 310, "<a>", "<b>")) is None
    match = match_vocabularies(target, other)
    assert match is not None
    assert match.rows.tolist() == [*range(300), 301, 300, *range(302, 310)]
    assert match_rows({"a": 0}, {"a": 0, "b": 2}, 4, 4).tolist() == [0, 1, -1, 3]


def test_without_tokenizers(tmp_path: Path) -> None:
    target, source = model_folder(tmp_path / "t"), model_folder(tmp_path / "s", 301, "<tool>")
    for path in source.glob("tokenizer*"):
        path.unlink()
    (issue,) = sibling_issues(target, source, "profile.sources[0].model")
    assert "vocabularies of [300, 301] entries are matched by token" in issue.problem
    with pytest.raises(ActError, match="must hold a tokenizer"):
        match_vocabularies(target, source)
    tiny_config("llama").save_pretrained(tmp_path / "bare")
    assert match_vocabularies(target, tmp_path / "bare") is None, "one size, and nothing to match by"


def test_a_vocabulary_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    place = model_folder(tmp_path / "t", 302, "<a>", "<b>")
    assert read_vocabulary(place) == AutoTokenizer.from_pretrained(place).get_vocab()
    (place / "tokenizer.json").write_text("{}")
    with pytest.raises(ActError, match="must hold a tokenizer that transformers can load"):
        read_vocabulary(place)
