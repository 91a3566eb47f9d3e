"""Secrets in settings: keys, tokens and passwords, which no card, log, printed config or patch may hold."""

from __future__ import annotations

import re
from argparse import Namespace
from typing import Any

REDACTED = "[redacted]"
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET = {"auth", "authorization", "bearer", "cookie", "key", "passphrase", "password", "passwd", "pwd", "token"}
_ANYWHERE = {"apikey", "credential", "credentials", "password", "secret", "secrets", "webhook"}
_OF_TEXT = {"bos", "cls", "eos", "image", "mask", "pad", "sep", "unk"}  # pad_token is a token of another kind
_SCOPES = {"access", "api", "auth", "private", "secret"}
_USERINFO = re.compile(r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]*://)[^\s/'\"]+@")
_QUERY = re.compile(r"([?&][\w-]*(?:key|token|secret|password|signature|sig)=)[^&\s'\"#]+", re.IGNORECASE)
_QUOTED = re.compile(r"(['\"]?)(\b[\w-]+)\1(\s*[:=]\s*)(['\"])([^'\"]+)\4")

_NESTED = re.compile(r"(NestedArg\(key='([\w.-]+)', val=)(.*)\)")  # how jsonargparse shows an option in its messages


def is_secret(name: str) -> bool:
    """Whether a setting of this name holds a secret.

    >>> [name for name in ("slack_token", "apiKey", "tokens", "pad_token", "key_variable", "tokens_per_batch", "key")
    ...  if is_secret(name)]
    ['slack_token', 'apiKey', 'key']
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words or (words[-1] == "token" and words[0] in _OF_TEXT):
        return False
    plural = words[-1] in ("keys", "tokens") and bool(_SCOPES & {*words})
    return words[-1] in _SECRET or bool(_ANYWHERE & {*words}) or plural


def redact_text(text: str) -> str:
    """``text`` without user and password of URLs, and without quoted values that follow a secret's name.

    >>> redact_text("https://me:pw@host/a?api_key=1&b=2"), redact_text("{'slack_token': 'xoxb', 'name': 'x'}")
    ('https://[redacted]@host/a?api_key=[redacted]&b=2', "{'slack_token': '[redacted]', 'name': 'x'}")
    >>> redact_text("Given value: NestedArg(key='init_args.api_token', val='xo(xb')")
    "Given value: NestedArg(key='[redacted]', val=[redacted])"
    """
    text = _NESTED.sub(
        lambda match: f"{match[1]}{REDACTED})" if is_secret(match[2].rpartition(".")[2]) else match[0], text
    )
    text = _QUERY.sub(rf"\g<1>{REDACTED}", _USERINFO.sub(rf"\g<1>{REDACTED}@", text))
    return _QUOTED.sub(lambda match: _redact_quoted(match) if is_secret(match[2]) else match[0], text)


def _redact_quoted(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2]}{match[1]}{match[3]}{match[4]}{REDACTED}{match[4]}"


def redact(value: Any, name: str = "") -> Any:  # noqa: ANN401 - any value of a config
    """A copy of a setting's value without secrets, at every depth.

    Args:
        value: Any value of a config; mappings, lists and namespaces keep their types.
        name: The setting's name, or the last part of it.

    >>> redact({"logger": [{"init_args": {"api_token": "x", "url": "s3://k:s@bucket"}}], "token": None})
    {'logger': [{'init_args': {'api_token': '[redacted]', 'url': 's3://[redacted]@bucket'}}], 'token': None}
    """
    if isinstance(value, Namespace):
        return type(value)(**redact(vars(value), name))
    if isinstance(value, dict):
        return {key: redact(item, name if is_secret(name) else str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(redact(item, name) for item in value)
    if value is None or isinstance(value, bool) or value == "":
        return value
    if is_secret(name) and isinstance(value, (str, bytes, int, float)):
        return REDACTED
    return redact_text(value) if isinstance(value, str) else value
