"""Chat templates that are shipped, to be chosen by name: what models were trained with whose tokenizer has none.

| name | models |
|---|---|
| ``wizardmath`` | WizardMath V1.0 (7B, 13B, 70B) |
| ``wizardlm`` | WizardLM-13B-V1.1 and -V1.2, WizardLM-70B-V1.0; Vicuna 1.1 to 1.5 |
| ``tulu`` | Tulu 1 and 2, with or without DPO |
| ``alpaca`` | Stanford Alpaca |
| ``chatml`` | any whose special tokens are ``<|im_start|>`` and ``<|im_end|>`` |
| ``llama2``, ``llama3`` | Llama 2 Chat, Llama 3 Instruct |

Each is a file in ``named_templates`` that opens with its source.
"""

from __future__ import annotations

from importlib.resources import files

from transformers import PreTrainedTokenizerBase

from act_lightning.errors import Fault

_FOLDER = files("act_lightning.data.labeling") / "named_templates"
_ENDING = ".jinja"
NAMES = tuple(sorted(file.name.removesuffix(_ENDING) for file in _FOLDER.iterdir() if file.name.endswith(_ENDING)))
"""Names of all shipped templates."""
_NEEDED = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
"""Special tokens that a template writes out; the others write but BOS and EOS, and text."""


def named_template(name: str) -> str:
    """The Jinja source of a shipped template.

    Args:
        name: One of ``NAMES``.
    """
    return (_FOLDER / f"{name}{_ENDING}").read_text(encoding="utf-8")


def named_faults(name: str, tokenizer: PreTrainedTokenizerBase, setting: str) -> list[Fault]:
    """Special tokens that a shipped template writes, and the tokenizer would read as ordinary text.

    Args:
        name: One of ``NAMES``.
        tokenizer: The target's tokenizer.
        setting: Where the template was named, for messages.
    """
    special = {entry.content for entry in tokenizer.added_tokens_decoder.values() if entry.special}
    missing = [token for token in _NEEDED.get(name, ()) if token not in special]
    if not missing:
        return []
    rule = f"writes {', '.join(missing)}, which the target's tokenizer does not have as special tokens"
    return [Fault(setting, name, rule, "Name the template that the target was trained with.")]
