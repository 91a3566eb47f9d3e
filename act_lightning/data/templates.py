"""How a conversation becomes text: the tokenizer's chat template, a shipped one, a file, or a text with ``{prompt}``.

Shipped templates are those that models were trained with whose tokenizer has none:

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

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from act_lightning.data.ability_data import AbilityData
from act_lightning.data.conversations import Conversation
from act_lightning.data.template_process import Request, TemplateProcess
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FOLDER = files("act_lightning.data") / "named_templates"
TEMPLATE_NAMES = tuple(sorted(file.name[:-6] for file in _FOLDER.iterdir() if file.name.endswith(".jinja")))
"""Names of the shipped templates."""
_SPECIAL_TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
"""Special tokens that a shipped template spells out; the others spell BOS and EOS at most."""
_CHAT = "chat"
_PROMPT = "{prompt}"
_PLACEHOLDER = "ANSWERSTANDSHERE"


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: The whole text.
        answers: Start and end of each answer in the text.
        add_special_tokens: Whether the tokenizer adds its own special tokens to the text.
        close_with_eos: Whether the end-of-sequence token closes the text.
    """

    text: str
    answers: list[tuple[int, int]]
    add_special_tokens: bool
    close_with_eos: bool


@dataclass
class Template(ABC):
    """Renders conversations as text; raises :class:`ActError` at those that it cannot render.

    Attributes:
        source: The text or the Jinja source.
        setting: The setting that gives it, for messages.
        close_with_eos: Whether the end-of-sequence token closes the text, which then need not contain it.
    """

    source: str
    setting: str
    close_with_eos: ClassVar[bool]

    def read_ahead(self, conversations: Sequence[Conversation]) -> None:  # noqa: B027 - nothing to do for most
        """Prepare to render these conversations, which is faster for all at once; what fails is left to ``render``."""

    @abstractmethod
    def render(self, messages: Conversation) -> Rendered:
        """The conversation up to its last answer, for training and profiling; it has an assistant's turn."""

    @abstractmethod
    def render_prompt(self, messages: Conversation) -> Rendered:
        """What a model reads before it generates the last answer; ``answers`` is empty."""


def template_issues(template: str, setting: str) -> list[ConfigIssue]:
    """Issues of a template setting, without a tokenizer."""
    if template == _CHAT or template in TEMPLATE_NAMES or _PROMPT in template:
        return []
    if template.endswith(".jinja"):
        hint = "Check the path of the chat template."
        return [] if Path(template).is_file() else [ConfigIssue(setting, template, "must be an existing file", hint)]
    names = ", ".join(TEMPLATE_NAMES)
    problem = f"must be {_CHAT}, {names}, a file that ends in .jinja, or text that contains {_PROMPT}"
    return [ConfigIssue(setting, template, problem, f'Write chat, or a text such as "Question: {_PROMPT}\\nAnswer: ".')]


def make_template(template: str, tokenizer: PreTrainedTokenizerBase, setting: str) -> Template:
    """The template that a setting names.

    Raises:
        ActError: If there is no such template, or the tokenizer lacks what it needs.
    """
    raise_if_any(template_issues(template, setting))
    if _PROMPT in template:
        return TextTemplate(template, setting)
    if template in TEMPLATE_NAMES:
        special = {entry.content for entry in tokenizer.added_tokens_decoder.values() if entry.special}
        if missing := [token for token in _SPECIAL_TOKENS.get(template, ()) if token not in special]:
            problem = f"writes {', '.join(missing)}, which the target's tokenizer does not have as special tokens"
            hint = "Name the template that the target was trained with."
            raise ActError(ConfigIssue(setting, template, problem, hint))
        source = (_FOLDER / f"{template}.jinja").read_text(encoding="utf-8")
    elif template == _CHAT and not tokenizer.chat_template:
        problem = "needs a tokenizer with a chat template, and the target's has none"
        hint = f"Name one of {', '.join(TEMPLATE_NAMES)} or a .jinja file, or write a text that contains {_PROMPT}."
        raise ActError(ConfigIssue(setting, template, problem, hint))
    else:
        try:
            is_chat = template == _CHAT
            source = str(tokenizer.get_chat_template()) if is_chat else Path(template).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            hint = "Name a .jinja file in UTF-8."
            raise ActError(ConfigIssue(setting, template, f"cannot be read: {error}", hint)) from error
    if "eos_token" in source and tokenizer.eos_token is None:
        problem = "writes the end-of-sequence token, and the target's tokenizer has none"
        raise ActError(ConfigIssue(setting, template, problem, "Name another template, or a target that has one."))
    return ChatTemplate(source, setting, tokenizer)


def resolve_template(settings: AbilityData, where: str, tokenizer: PreTrainedTokenizerBase, default: str) -> Template:
    """The template of one data set: its own, or ``data.template``."""
    setting = "data.template" if settings.template is None else f"{where}.template"
    return make_template(settings.template or default, tokenizer, setting)


@dataclass
class TextTemplate(Template):
    r"""A text with ``{prompt}``, then the answer: one question, one answer. Other braces stay as they are.

    >>> TextTemplate("Q: {prompt}\nA: ").render([{"role": "user", "content": "1 + 1?"},
    ...                                          {"role": "assistant", "content": "2"}])
    Rendered(text='Q: 1 + 1?\nA: 2', answers=[(13, 14)], add_special_tokens=True, close_with_eos=True)
    """

    setting: str = "data.template"
    close_with_eos = True

    def render(self, messages: Conversation) -> Rendered:
        """The text with prompt and answer."""
        prompt = self.render_prompt(messages).text
        answer = messages[1]["content"]
        return Rendered(prompt + answer, [(len(prompt), len(prompt) + len(answer))], True, True)

    def render_prompt(self, messages: Conversation) -> Rendered:
        """The text with the prompt, up to where the answer begins."""
        roles = [message["role"] for message in messages]
        if roles != ["user", "assistant"]:
            problem = f"can render one user turn and one assistant turn, but a conversation has {', '.join(roles)}"
            raise ActError(ConfigIssue(self.setting, self.source, problem, "Use a chat template for conversations."))
        return Rendered(self.source.replace(_PROMPT, messages[0]["content"]), [], True, False)


@dataclass
class ChatTemplate(Template):
    """A Jinja chat template: every assistant turn is an answer.

    An answer starts where its content starts, at or after the end of the generation prompt: what a template writes
    between the two, such as a space or an empty block of thoughts, is not part of it.
    """

    tokenizer: PreTrainedTokenizerBase
    close_with_eos = False
    _process: TemplateProcess | None = field(default=None, init=False, repr=False, compare=False)
    _ahead: dict[int, tuple[Conversation, list[str]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the process that renders; a copy has its own."""
        return {**vars(self), "_process": None, "_ahead": {}}

    def read_ahead(self, conversations: Sequence[Conversation]) -> None:
        """Ask the process for all texts at once, since to ask takes longer than to render."""
        answered = [messages for messages in conversations if messages[0]["role"] != "assistant"]
        requests = [self._requests(messages) for messages in answered]
        self._ahead = {}
        with suppress(ActError):
            texts = iter(self._apply(*chain.from_iterable(requests)))
            for messages, parts in zip(answered, requests, strict=True):
                self._ahead[id(messages)] = messages, list(islice(texts, len(parts)))

    def render(self, messages: Conversation) -> Rendered:
        """The text up to what follows the last assistant turn, with the span of each answer."""
        answer_turns = self._answer_turns(messages)
        turns = messages[: answer_turns[-1] + 1]
        ahead, texts = self._ahead.pop(id(messages), (None, []))
        text, *prompts = texts if ahead is messages else self._apply(*self._requests(messages))
        if not all(text.startswith(prompt) for prompt in prompts):
            problem = "must be one whose earlier turns the chat template leaves unchanged when an answer follows"
            hint = "Use rows of one turn, or another template."
            raise ActError(ConfigIssue(self.setting, messages, problem, hint))
        starts = [len(prompt) for prompt in prompts]
        limits = [*starts[1:], len(text)]
        spans = [self._locate(turns, *bounds, text) for bounds in zip(answer_turns, starts, limits, strict=True)]
        return Rendered(text, spans, add_special_tokens=False, close_with_eos=False)

    def render_prompt(self, messages: Conversation) -> Rendered:
        """The generation prompt before the last assistant turn."""
        turns = messages[: self._answer_turns(messages)[-1]]
        return Rendered(self._apply((turns, True))[0], [], add_special_tokens=False, close_with_eos=False)

    def _requests(self, messages: Conversation) -> list[Request]:
        """The whole conversation, and what comes before each answer."""
        answer_turns = self._answer_turns(messages)
        return [(messages[: answer_turns[-1] + 1], False), *((messages[:turn], True) for turn in answer_turns)]

    def _answer_turns(self, messages: Conversation) -> list[int]:
        if messages[0]["role"] == "assistant":
            problem, hint = "must begin with a user's or a system's turn", "Correct the row, or exclude it with filter."
            raise ActError(ConfigIssue(self.setting, messages, problem, hint))
        return [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]

    def _locate(self, turns: Conversation, turn: int, start: int, limit: int, text: str) -> tuple[int, int]:
        """Where the content of a turn starts and ends in the text, between ``start`` and ``limit``."""
        content = turns[turn]["content"]
        first = text.find(content, start, limit)
        if content == content.strip() and first >= 0 and text.find(content, first + 1, limit) < 0:
            return first, first + len(content)
        # The content occurs twice, or was stripped: see where the template puts a placeholder instead.
        replaced = [*turns[:turn], {**turns[turn], "content": _PLACEHOLDER}, *turns[turn + 1 :]]
        expected = self._apply((replaced, False))[0].find(_PLACEHOLDER, start)
        variants = (content, content.strip(), content.rstrip())
        for variant in variants:
            if expected >= 0 and text.startswith(variant, expected):
                return expected, expected + len(variant)
        for variant in variants:
            if (first := text.find(variant, start, limit)) >= 0:
                return first, first + len(variant)
        problem = "must write an assistant's content as it is, which this chat template does not"
        hint = "Correct the row, or use another template."
        raise ActError(ConfigIssue(self.setting, content, problem, hint))

    def _apply(self, *requests: Request) -> list[str]:
        """The text of each conversation, with a generation prompt where one is wanted."""
        if self._process is None or self._process.owner != os.getpid():
            self._process = TemplateProcess(partial(_apply_chat_template, self.tokenizer, self.source))
        try:
            return self._process.texts(requests)
        except ValueError as error:
            problem = f"must be a conversation that the chat template can render ({error})"
            hint = "Correct the row, or use another template."
            raise ActError(ConfigIssue(self.setting, requests[0][0], problem, hint)) from error


def _apply_chat_template(tokenizer: PreTrainedTokenizerBase, source: str, request: Request) -> str:
    messages, generation = request
    text = tokenizer.apply_chat_template(
        messages, chat_template=source, tokenize=False, add_generation_prompt=generation
    )
    return str(text)
