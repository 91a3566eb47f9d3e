"""Saved scores: one safetensors file per source and ability, with the record of what they were measured on.

Beside the record, the metadata key ``act`` holds ``sha256``: the digest ``tensors`` of all scores, see
:func:`~act_lightning.checkpoints.weight_files.tensors_digest`, and ``record``, that of the JSON of everything else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from act_lightning.channels import ChannelInventory
from act_lightning.checkpoints.files import parse_json, save_tensors
from act_lightning.checkpoints.weight_files import tensors_digest
from act_lightning.errors import ActError, ConfigIssue
from act_lightning.scorers.activation import Activation
from act_lightning.scorers.scorer import Scorer, recorded_scorer

FORMAT = 1
CHUNKS = ".chunks"
"""What the stem of a file ends with that keeps the scores of each chunk."""
_USERS = ("target", "source", "either")
_HINT = "Delete the file, so that the next run measures again."
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_JSON_TYPES: Mapping[str, type] = {
    **dict.fromkeys(("tokens", "samples", "dropped", "format"), int),
    **dict.fromkeys(("data", "dtype", "positions"), str),
    **dict.fromkeys(("models", "identities", "versions", "scorer", "keep", "stability"), dict),
}
_FINGERPRINT = ("format", "scorer", "target", "source", "data", "keep", "dtype", "positions")


@dataclass(frozen=True)
class ScoreRecord:
    """What scores were measured on; saved as JSON under the metadata key ``act``.

    Attributes:
        tokens: Answer tokens.
        samples: Rows used.
        dropped: Rows without answer tokens.
        models: How target and source were named.
        identities: Digest (and hub commit) of target and source.
        data: SHA-256 over all token ids and labels, so that rows, template, tokenizer and lengths count.
        dtype: Precision of weights and activations.
        versions: Versions of packages; for the record, not part of the fingerprint.
        positions: Which positions were compared.
        format: Version of the way scores are computed; those of another version are measured again.
        scorer: Name and settings of the scorer; files from before there were others are of ``activation``.
        keep: SHA-256 of the samples of each ability to keep, for a scorer that reads these as well.
        stability: Where samples are read until the mask is stable: the ``threshold`` and ``masks`` of the settings, the
            final ``overlap``, and the number of all samples (``of``) if not all were read.
    """

    tokens: int
    samples: int
    dropped: int
    models: Mapping[str, str]
    identities: Mapping[str, Mapping[str, Any]]
    data: str
    dtype: str
    versions: Mapping[str, str] = field(default_factory=dict)
    positions: str = "answer"
    format: int = FORMAT
    scorer: Mapping[str, Any] = field(default_factory=lambda: {"name": "activation"})
    keep: Mapping[str, str] = field(default_factory=dict)
    stability: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ScoreRecord:
        """The record from its JSON values; unknown keys are ignored. KeyError or TypeError if it is damaged."""
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        for name, value in known.items():
            if not isinstance(value, _JSON_TYPES[name]) or isinstance(value, bool):
                raise TypeError(f"{name} is {value!r}")
        for value in known["identities"].values():
            if not isinstance(value, dict):
                raise TypeError(f"an identity is {value!r}")
        return cls(**known)

    def fingerprint(self) -> dict[str, Any]:
        """The values that must be equal for scores to be used again."""
        values = asdict(self)
        for role in ("target", "source"):
            values[role] = self.identities.get(role, {}).get("digest")
        values["scorer"] = recorded_scorer(self.scorer)
        return {name: values[name] for name in _FINGERPRINT}

    def changes(self, expected: ScoreRecord) -> list[str]:
        """How this record differs from the expected one, one phrase each; empty if the scores can be used again."""
        changes, saved = [], self.fingerprint()
        for name, value in expected.fingerprint().items():
            if saved[name] != value:
                old, new = (text if len(text) <= 16 else text[:12] + "…" for text in (str(saved[name]), str(value)))
                changes.append(f"{name} was {old}, is {new}")
        settings = ("threshold", "masks")
        if "of" in self.stability and any(self.stability.get(key) != expected.stability.get(key) for key in settings):
            changes.append(f"samples were {self.samples} of {self.stability['of']}, enough for other masks")
        return changes


def scores_folder(root: Path, scorer: Scorer) -> Path:
    """Where a run keeps the scores of a scorer.

    >>> from act_lightning.scorers import Activation, Local
    >>> [scores_folder(Path("run"), scorer).as_posix() for scorer in (Activation(), Local())]
    ['run/scores', 'run/scores.local']
    """
    name = scorer.record()["name"]
    return root / ("scores" if name == Activation.name else f"scores.{name}")


def score_path(root: Path, source: str, ability: str) -> Path:
    """The file of the scores of an ability of a source.

    >>> score_path(Path("scores"), "Qwen2.5-7B-Instruct", "science-ar").as_posix()
    'scores/Qwen2.5-7B-Instruct/science-ar.safetensors'
    """
    return root / source / f"{ability}.safetensors"


def chunks_path(path: Path) -> Path:
    """The file of the scores of each chunk, given that of all samples.

    >>> chunks_path(Path("scores/s/science-ar.safetensors")).name
    'science-ar.chunks.safetensors'
    """
    return path.with_name(f"{path.stem}{CHUNKS}{path.suffix}")


class ChunkScores(NamedTuple):
    """The scores of every chunk of an ability's samples; see :mod:`act_lightning.masks`.

    Attributes:
        scores: float32 ``[chunks, channels]``.
        tokens: Answer tokens of each chunk.
        samples: Samples of each chunk.
    """

    scores: Tensor
    tokens: list[int]
    samples: list[int]


def write_chunks(path: Path, inventory: ChannelInventory, chunks: ChunkScores, record: ScoreRecord) -> None:
    """Write the scores of each chunk by module, beside ``path``, the file of the scores of all samples.

    Raises:
        ActError: If a score is NaN or infinite; nothing is written then.
    """
    for scores in chunks.scores:
        require_finite(path, inventory, scores)
    tensors = {module.name: chunks.scores[:, span].cpu().contiguous() for module, span in inventory.spans()}
    sizes = {"chunks": {"tokens": chunks.tokens, "samples": chunks.samples}}
    save_tensors(chunks_path(path), tensors, _metadata(inventory, record, tensors, sizes))


def write_scores(
    path: Path,
    inventory: ChannelInventory,
    scores: Tensor,
    record: ScoreRecord,
    usage: Mapping[str, Tensor] = _NOTHING,
) -> None:
    """Write scores under a temporary name, and rename the file when it is complete.

    Args:
        path: See :func:`score_path`.
        inventory: The channels of the target.
        scores: float32 ``[channels]``.
        record: What they were measured on.
        usage: How many answer tokens the target, the source, and either of them route to each expert, int64
            ``[3, experts]``, by module of packed experts.

    Raises:
        ActError: If a score is NaN or infinite; nothing is written then.
    """
    require_finite(path, inventory, scores)
    tensors = {name: part.contiguous() for name, part in inventory.split(scores.cpu()).items()}
    others = {"experts": {name: dict(zip(_USERS, counts.tolist(), strict=True)) for name, counts in usage.items()}}
    save_tensors(path, tensors, _metadata(inventory, record, tensors, others if usage else {}))


def require_difference(path: Path, scores: Tensor, record: ScoreRecord) -> None:
    """Refuse scores of which none tells one channel from another.

    Raises:
        ActError: If all are zero, as those of two equal models.
    """
    if not bool(scores.any()):
        problem = f"must differ from the target {record.models.get('target')}, and all scores in {path} are zero"
        hint = "Name the model that has the ability; nothing can be transferred from one that computes the same."
        raise ActError(ConfigIssue("profile.sources", record.models.get("source"), problem, hint))


def _metadata(
    inventory: ChannelInventory, record: ScoreRecord, tensors: Mapping[str, Tensor], sizes: Mapping[str, Any]
) -> dict[str, str]:
    """One entry, since safetensors writes several in any order; with the order of modules, since it sorts tensors."""
    order = {"modules": [module.name for module in inventory.modules]}
    return {"act": encode_record(record, tensors, {**order, **sizes})}


def encode_record(record: ScoreRecord, tensors: Mapping[str, Tensor], others: Mapping[str, Any] = _NOTHING) -> str:
    """The JSON of a record and of ``others``, with the checksums of these and of ``tensors``."""
    values = {**asdict(record), **others}
    sha256 = {"record": _values_digest(values), "tensors": tensors_digest(tensors)}
    return json.dumps({**values, "sha256": sha256}, sort_keys=True)


def _values_digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_metadata(path: Path) -> dict[str, Any]:
    """All that a file of scores says of them, without reading the scores.

    Raises:
        ActError: The file cannot be read, holds no scores of ours, has no checksums, or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            values = parse_json((file.metadata() or {})["act"])
        others = {name: value for name, value in values.items() if name != "sha256"}
        ScoreRecord.from_json(values)
        sha256 = values.get("sha256", {"record": None})
        digests = sha256["record"], _values_digest(others)
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ActError(ConfigIssue("scores", str(path), f"must be a readable score file ({error})", _HINT)) from error
    if digests[0] is None:
        problem = "must carry the SHA-256 of its scores, which those of earlier versions lack"
        raise ActError(ConfigIssue("scores", str(path), problem, _HINT))
    if digests[0] != digests[1]:
        raise ActError(ConfigIssue("scores", str(path), "must have the SHA-256 that it states: it is damaged", _HINT))
    return dict(values)


def read_record(path: Path) -> ScoreRecord:
    """The record of saved scores, without reading the scores.

    Raises:
        ActError: As :func:`read_metadata`.
    """
    return ScoreRecord.from_json(read_metadata(path))


def read_usage(path: Path) -> dict[str, Tensor]:
    """How often each expert was used, as :func:`write_scores` was given it; empty for scores that don't say so.

    Raises:
        ActError: As :func:`read_metadata`, or the counts are damaged.
    """
    saved = read_metadata(path).get("experts", {})
    try:
        return {name: torch.tensor([counts[user] for user in _USERS]) for name, counts in saved.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"must say how often each expert was used ({error})"
        raise ActError(ConfigIssue("scores", str(path), problem, _HINT)) from error


def unreached_experts(usage: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Numbers of the experts to which no answer token was routed in either model, by module."""
    unused = {name: (counts[2] == 0).nonzero().flatten().tolist() for name, counts in usage.items()}
    return {name: numbers for name, numbers in unused.items() if numbers}


def name_experts(experts: Mapping[str, list[int]]) -> str:
    """Numbers of experts by module, as text.

    >>> name_experts({"layers.0.experts": [3, 7]})
    'layers.0.experts: 3, 7'
    """
    return "; ".join(f"{name}: {', '.join(map(str, numbers))}" for name, numbers in experts.items())


def read_chunk_sizes(path: Path) -> tuple[list[int], list[int]]:
    """Answer tokens and samples of each chunk, given the file of the scores of all samples.

    Raises:
        ActError: If there is no readable file of chunks beside it.
    """
    file = chunks_path(path)
    try:
        sizes = read_metadata(file)["chunks"]
        return [int(value) for value in sizes["tokens"]], [int(value) for value in sizes["samples"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ActError):
            raise
        problem = f"must be a readable file of chunks ({error})"
        raise ActError(ConfigIssue("scores", str(file), problem, _HINT)) from error


def read_chunks(path: Path, inventory: ChannelInventory) -> ChunkScores:
    """The scores of each chunk, in the order of the model's channels, given the file of the scores of all samples.

    Raises:
        ActError: If there is no file of chunks beside it, or it is unreadable or belongs to other modules.
    """
    tokens, samples = read_chunk_sizes(path)
    expected = {module.name: (len(tokens), module.count) for module in inventory.modules}
    problem = "must hold one tensor [chunks, channels] for each module of the target"
    tensors = _read_tensors(chunks_path(path), expected, problem)
    scores = torch.cat([tensors[module.name] for module in inventory.modules], dim=1).to(torch.float32)
    return ChunkScores(scores, tokens, samples)


def read_scores(path: Path, inventory: ChannelInventory) -> Tensor:
    """Saved scores in the order of the model's channels, whatever the order in the file.

    Returns:
        float32 ``[channels]``.

    Raises:
        ActError: If the file is unreadable, belongs to other modules, or holds NaN or infinity.
    """
    expected = {module.name: (module.count,) for module in inventory.modules}
    problem = "must hold one tensor for each module of the target, one value a channel"
    scores = inventory.join(_read_tensors(path, expected, problem)).to(torch.float32)
    require_finite(path, inventory, scores)
    return scores


def _read_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]], problem: str) -> dict[str, Tensor]:
    """All tensors of a file; an error with ``problem`` unless they have these names and shapes, and their checksum."""
    sha256 = read_metadata(path)["sha256"].get("tensors")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise ActError(ConfigIssue("scores", str(path), f"must be a readable score file ({error})", _HINT)) from error
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
        raise ActError(ConfigIssue("scores", str(path), problem, "Use the scores of this target, or measure again."))
    if tensors_digest(tensors) != sha256:
        raise ActError(ConfigIssue("scores", str(path), "must have the SHA-256 that it states: it is damaged", _HINT))
    return tensors


def require_finite(path: Path, inventory: ChannelInventory, scores: Tensor) -> None:
    """Refuse scores that cannot be ranked, float32 ``[channels]``; ``path`` is their file, for the message.

    Raises:
        ActError: With the module and the ability of the first score that is NaN or infinite.
    """
    for name, part in inventory.split(scores).items():
        if not torch.isfinite(part).all():
            problem = f"scores of module {name!r} for ability {path.stem!r} must be finite"
            hint = "Look for NaN in the weights of both models, or compare them in float32."
            raise ActError(ConfigIssue("scores", str(path), problem, hint))
