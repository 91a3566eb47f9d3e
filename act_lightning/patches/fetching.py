"""Patches from the hub: ``hf://owner/name/file`` names a file of a repository, anything else a file here."""

from __future__ import annotations

import re
from pathlib import Path

from act_lightning.errors import ActError, Fault

_SCHEME = "hf://"
_HUB_FILE = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<early>[^/@]+))?/(?P<file>[^@]+?)(@(?P<late>[^@]+))?")
_REMEDY = "Write hf://owner/name/file.safetensors, or hf://owner/name/file.safetensors@revision."


def find_patch(reference: str) -> Path:
    """The file of a patch, fetched from the hub where it is there.

    A patch is pushed like any file: ``hf upload me/patches science.safetensors``, or
    ``huggingface_hub.upload_file(path_or_fileobj=…, path_in_repo="science.safetensors", repo_id="me/patches")``.

    Args:
        reference: A path; or ``hf://owner/name/path/in/repository``, with ``@revision`` after the name, as
            ``huggingface_hub`` has it, or at the end.

    Raises:
        ActError: There is no such file, or the hub cannot be reached.
    """
    if not reference.startswith(_SCHEME):
        path = Path(reference).expanduser()
        if not path.is_file():
            rule = "must be a file that exists, or a hub file"
            raise ActError(Fault("patch", reference, rule, f"Correct the path. {_REMEDY}"))
        return path
    match = _HUB_FILE.fullmatch(reference)
    if match is None or (match["early"] and match["late"]):
        raise ActError(Fault("patch", reference, "must name a file of a hub repository", _REMEDY))
    return _fetch(reference, match["repo"], match["file"], match["early"] or match["late"])


def _fetch(reference: str, repository: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"
        remedy = "Check name, revision, network and `hf auth login`, or give the path of a local copy."
        raise ActError(
            Fault("patch", reference, f"must be a hub file that can be fetched ({reason})", remedy)
        ) from error
