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

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
from transformers import PreTrainedTokenizerBase

from act_lightning.data.conversations import Conversation
from act_lightning.errors import ActError, ConfigIssue, located, raise_if_any

_FOLDER = files("act_lightning.data") / "named_templates"
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


def named_issues(name: str, tokenizer: PreTrainedTokenizerBase, setting: str) -> list[ConfigIssue]:
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
    problem = f"writes {', '.join(missing)}, which the target's tokenizer does not have as special tokens"
    return [ConfigIssue(setting, name, problem, "Name the template that the target was trained with.")]


CHAT = "chat"
PROMPT = "{prompt}"
_PROBE = "ANSWERSTANDSHERE"


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: The whole text.
        answers: First character of each answer, and the one after its last.
        add_special_tokens: Whether the tokenizer adds its own special tokens to the text.
        close_with_eos: Whether the end-of-sequence token closes the text.
    """

    text: str
    answers: list[tuple[int, int]]
    add_special_tokens: bool
    close_with_eos: bool


class Template(ABC):
    """A way to write a conversation as text.

    Attributes:
        setting: Where it was given, for messages.
        written: Its text or Jinja source, or ``chat``.
        close_with_eos: Whether the end-of-sequence token closes the text, which then need not write it.
    """

    setting: str
    written: str
    close_with_eos: bool

    def render(self, messages: Conversation, place: str | None = None) -> Rendered:
        """The conversation up to its last answer, for training and profiling.

        Args:
            messages: Turns with ``role`` and ``content``, an assistant's among them.
            place: Where they come from, for messages.

        Raises:
            ActError: If the template cannot tell this conversation.
        """
        with located(place):
            return self._whole(messages)

    def render_prompt(self, messages: Conversation, place: str | None = None) -> Rendered:
        """What a model reads before it writes the last answer; ``answers`` is empty.

        Args:
            messages: Turns with ``role`` and ``content``, an assistant's among them.
            place: Where they come from, for messages.

        Raises:
            ActError: If the template cannot tell this conversation.
        """
        with located(place):
            return self._prompt(messages)

    @abstractmethod
    def _whole(self, messages: Conversation) -> Rendered: ...

    @abstractmethod
    def _prompt(self, messages: Conversation) -> Rendered: ...


def template_issues(template: str, setting: str) -> list[ConfigIssue]:
    """What is wrong with a template's name, as far as no tokenizer is needed.

    Args:
        template: ``chat``, a shipped name, a path that ends in ``.jinja``, or text that contains ``{prompt}``.
        setting: Where it was given, such as ``data.template``.
    """
    if template == CHAT or template in NAMES or PROMPT in template:
        return []
    if template.endswith(".jinja"):
        hint = "Check the path of the chat template."
        return [] if Path(template).is_file() else [ConfigIssue(setting, template, "must be an existing file", hint)]
    problem = f"must be {CHAT}, {', '.join(NAMES)}, a file that ends in .jinja, or text that contains {PROMPT}"
    return [ConfigIssue(setting, template, problem, f'Write chat, or a text such as "Question: {PROMPT}\\nAnswer: ".')]


def make_template(template: str, tokenizer: PreTrainedTokenizerBase, setting: str) -> Template:
    """The template that a setting names.

    Args:
        template: ``chat`` (the tokenizer's own), a shipped name, a path that ends in ``.jinja``, or text that contains
            ``{prompt}``.
        tokenizer: The target's tokenizer.
        setting: Where it was given, for messages.

    Raises:
        ActError: If there is no such template, or the tokenizer lacks what it takes.
    """
    raise_if_any(template_issues(template, setting))
    if PROMPT in template:
        return TextTemplate(template, setting)
    source = _source(template, tokenizer, setting)
    if "eos_token" in source and tokenizer.eos_token is None:
        problem = "writes the end-of-sequence token, and the target's tokenizer has none"
        raise ActError(ConfigIssue(setting, template, problem, "Name another template, or a target that has one."))
    return ChatTemplate(tokenizer, setting, source)


def _source(template: str, tokenizer: PreTrainedTokenizerBase, setting: str) -> str:
    """A chat template's Jinja source."""
    if template in NAMES:
        raise_if_any(named_issues(template, tokenizer, setting))
        return named_template(template)
    if template == CHAT and not tokenizer.chat_template:
        problem = "needs a tokenizer with a chat template, and the target's has none"
        hint = f"Name one of {', '.join(NAMES)} or a .jinja file, or write a text that contains {PROMPT}."
        raise ActError(ConfigIssue(setting, template, problem, hint))
    try:
        return str(tokenizer.get_chat_template()) if template == CHAT else Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        hint = "Name a .jinja file in UTF-8."
        raise ActError(ConfigIssue(setting, template, f"cannot be read: {error}", hint)) from error


class TextTemplate(Template):
    r"""Text with the prompt in its place, then the answer: one question, one answer.

    >>> TextTemplate("Q: {prompt}\nA: ").render([{"role": "user", "content": "1 + 1?"},
    ...                                          {"role": "assistant", "content": "2"}])
    Rendered(text='Q: 1 + 1?\nA: 2', answers=[(13, 14)], add_special_tokens=True, close_with_eos=True)

    Args:
        text: Text that contains ``{prompt}``; other braces stay as they are.
        setting: Where it was given, for messages.
    """

    def __init__(self, text: str, setting: str = "data.template") -> None:
        self.written = text
        self.setting = setting
        self.close_with_eos = True

    def _whole(self, messages: Conversation) -> Rendered:
        prompt = self._prompt(messages).text
        answer = messages[1]["content"]
        return Rendered(prompt + answer, [(len(prompt), len(prompt) + len(answer))], True, True)

    def _prompt(self, messages: Conversation) -> Rendered:
        roles = [message["role"] for message in messages]
        if roles != ["user", "assistant"]:
            problem = f"can tell one user turn and one assistant turn, but a conversation has {', '.join(roles)}"
            raise ActError(ConfigIssue(self.setting, self.written, problem, "Use a chat template for conversations."))
        return Rendered(self.written.replace(PROMPT, messages[0]["content"]), [], True, False)


class ChatTemplate(Template):
    """A Jinja chat template: every assistant turn is an answer.

    An answer starts where its content starts, at or after the end of the generation prompt: what a template writes
    between the two, such as a space or an empty block of thoughts, is no part of it.

    Args:
        tokenizer: The tokenizer that renders, and whose own template is used unless ``source`` is given.
        setting: Where the template was given, for messages.
        source: A Jinja template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, setting: str, source: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.setting = setting
        self.source = source
        self.written = CHAT if source is None else source
        self.close_with_eos = False

    def _whole(self, messages: Conversation) -> Rendered:
        """The text up to what follows the last assistant turn, with the span of each one's content."""
        asked = self._answer_turns(messages)
        turns = messages[: asked[-1] + 1]
        text = self._text(turns)
        prompts = [self._text(turns[:turn], generation=True) for turn in asked]
        if not all(text.startswith(prompt) for prompt in prompts):
            problem = "must be one whose earlier turns the chat template leaves unchanged when an answer follows"
            raise ActError(ConfigIssue(self.setting, messages, problem, "Use rows of one turn, or another template."))
        ends = [len(prompt) for prompt in prompts]
        limits = [*ends[1:], len(text)]
        spans = [self._span(turns, *where, text) for where in zip(asked, ends, limits, strict=True)]
        return Rendered(text, spans, add_special_tokens=False, close_with_eos=False)

    def _prompt(self, messages: Conversation) -> Rendered:
        """The generation prompt before the last assistant turn."""
        turns = messages[: self._answer_turns(messages)[-1]]
        return Rendered(self._text(turns, generation=True), [], add_special_tokens=False, close_with_eos=False)

    def _answer_turns(self, messages: Conversation) -> list[int]:
        if messages[0]["role"] == "assistant":
            problem = "must begin with a user's or a system's turn"
            raise ActError(ConfigIssue(self.setting, messages, problem, "Mend the row, or leave it out with filter."))
        return [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]

    def _span(self, turns: Conversation, turn: int, earliest: int, limit: int, text: str) -> tuple[int, int]:
        content = turns[turn]["content"]
        if content == content.strip() and (only := _only(text, content, earliest, limit)) is not None:
            return only, only + len(content)
        probe = [*turns[:turn], {**turns[turn], "content": _PROBE}, *turns[turn + 1 :]]
        expected = self._text(probe).find(_PROBE, earliest)
        variants = (content, content.strip(), content.rstrip())
        for variant in variants:
            if expected >= 0 and text.startswith(variant, expected):
                return expected, expected + len(variant)
        for variant in variants:
            if (start := text.find(variant, earliest, limit)) >= 0:
                return start, start + len(variant)
        problem = "must write an assistant's content as it is, which this chat template does not"
        raise ActError(ConfigIssue(self.setting, content, problem, "Mend the row, or use another template."))

    def _text(self, messages: Conversation, generation: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.source, tokenize=False, add_generation_prompt=generation
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            problem = f"must be a conversation that the chat template can render ({error})"
            raise ActError(
                ConfigIssue(self.setting, messages, problem, "Mend the row, or use another template.")
            ) from error
        return str(text)


def _only(text: str, content: str, start: int, end: int) -> int | None:
    """Where the content stands, if it stands in one place only: then no probe is needed to tell which it is."""
    first = text.find(content, start, end)
    return first if first >= 0 and text.find(content, first + 1, end) < 0 else None
