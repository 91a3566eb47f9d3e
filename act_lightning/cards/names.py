"""How a card calls models and files: hub ids as they are, of a machine's own paths only the last part."""

from __future__ import annotations

import re

from act_lightning.checkpoints.pickled import PREFIX

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form ``owner/name``.

    >>> is_hub_id("Qwen/Qwen2.5-7B"), is_hub_id("runs/deep/base"), is_hub_id("lab:generalist")
    (True, False, False)
    """
    return _HUB_ID.fullmatch(name) is not None


def short(name: str) -> str:
    """A hub id as it is; of a folder the last part, for paths of one's machine are nobody's business.

    >>> short("Qwen/Qwen2.5-7B"), short("/home/me/models/mine/"), short("bin:/home/me/old")
    ('Qwen/Qwen2.5-7B', 'mine', 'bin:old')
    """
    prefix = PREFIX if name.startswith(PREFIX) else ""
    rest = name.removeprefix(prefix)
    return name if is_hub_id(rest) else prefix + re.split(r"[/\\]", rest.rstrip("/\\"))[-1]
