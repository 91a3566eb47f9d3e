"""Secrets in settings: in no card, saved or printed config, message or patch."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from act_lightning.errors import ConfigIssue
from act_lightning.redaction import REDACTED, redact, redact_text
from tests.front_door import basic, call, changed, run, write_yaml

SECRETS = ("xoxb-slack-1", "pw-of-me-2", "key-of-mine-3")


class Announce(L.Callback):
    """A user's own callback that announces a run."""

    def __init__(self, slack_token: str, url: str = "", options: dict[str, Any] | None = None) -> None:
        self.slack_token = slack_token


def announced(config: dict[str, Any]) -> dict[str, Any]:
    arguments = {"slack_token": SECRETS[0], "url": f"https://me:{SECRETS[1]}@host/x", "options": {"apiKey": SECRETS[2]}}
    callback = {"class_path": "tests.test_redaction.Announce", "init_args": arguments}
    return changed(config, "trainer.callbacks", [callback])


def test_no_secret_of_a_run_is_written_or_printed(
    tmp_path: Path, target_folder: Path, source_folder: Path, ability_file: Path
) -> None:
    config = announced(basic(tmp_path, target_folder, source_folder, ability_file))
    outcome = run("fit", config)
    assert outcome.status == 0, outcome.err
    printed = call("fit", "--config", tmp_path / "config.yaml", "--print_config")
    assert REDACTED in printed.out
    saved = next(tmp_path.glob("run/logs/*/config.yaml"))
    assert REDACTED in saved.read_text()
    card = (tmp_path / "run/model/README.md").read_text()
    assert REDACTED in card
    patch = tmp_path / "a.safetensors"
    assert call("patch", "make", "--base", target_folder, "--tuned", tmp_path / "run/model", "--out", patch).status == 0
    with safe_open(patch, "pt") as file:
        metadata = str(file.metadata())
    assert REDACTED in metadata
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    everything = [outcome.out, outcome.err, printed.out, metadata, *(content.decode("latin-1") for content in written)]
    for secret in SECRETS:
        assert not [text for text in everything if secret in text], secret
    again = call("fit", "--config", saved)
    assert again.status == 1
    assert "was left out of the config, because it is a secret" in again.err


def test_the_key_of_an_endpoint_is_not_printed(tmp_path: Path) -> None:
    settings = {"key": SECRETS[2], "base_url": f"https://me:{SECRETS[1]}@host/v1", "languages": ["ar"], "prices": {}}
    config = write_yaml(tmp_path / "t.yaml", {"translate": settings})
    printed = call("data", "translate", "--config", config, "--print_config")
    values = yaml.safe_load(printed.out)["translate"]
    assert values["key"] == REDACTED
    assert values["base_url"] == f"https://{REDACTED}@host/v1"
    assert values["key_variable"] == "OPENAI_API_KEY"
    wrong = call("data", "translate", "--config", config, "--translate.timeout", "-1", "--translate.models", SECRETS[2])
    assert SECRETS[1] not in wrong.err


def test_an_issue_shows_no_secret() -> None:
    nested = ConfigIssue("trainer.logger", [{"init_args": {"api_token": SECRETS[0]}}], "must x", "Do y.")
    named = ConfigIssue("translate.key", SECRETS[0], f"must be refused by https://a:{SECRETS[1]}@b/c", "Do y.")
    assert not any(secret in f"{nested} {named}" for secret in SECRETS)


def test_cards_and_issues_keep_all_that_is_no_secret() -> None:
    for name in ("tokens", "max_new_tokens", "tokens_per_batch", "pad_token", "eos_token", "key_variable", "tokenizer"):
        assert redact({name: "x"}) == {name: "x"}
    for name in ("token", "hf_token", "WANDB_API_KEY", "apiKey", "password", "aws_secret_access_key", "webhook_url"):
        assert redact({name: "x"}) == {name: REDACTED}
    assert redact(Namespace(a=[Namespace(token=["x", {"b": "y"}])])) == Namespace(
        a=[Namespace(token=[REDACTED, {"b": REDACTED}])]
    )
    assert redact_text("hf://owner/name/file@revision") == "hf://owner/name/file@revision"
    assert redact_text("mail me@example.org") == "mail me@example.org"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text("abc:/@ "), st.lists, max_leaves=5))
def test_redaction_is_idempotent(value: Any) -> None:
    assert redact(redact({"token": value, "x": value})) == redact({"token": value, "x": value})


def test_a_patch_of_a_config_with_a_key(tmp_path: Path, target_folder: Path, source_folder: Path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(source_folder, tuned)
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps(config | {"hub_token": SECRETS[0], "rms_norm_eps": 0.125}))
    patch = tmp_path / "a.safetensors"
    made = call("patch", "make", "--base", target_folder, "--tuned", tuned, "--out", patch)
    assert SECRETS[0] not in made.out
    assert "rms_norm_eps is 1e-06 in the base, and 0.125 in the tuned model" in made.out
    assert SECRETS[0].encode() not in patch.read_bytes()
