"""How a tuned model differs from its base, as a LoRA adapter of a given rank: the nearest one, and how near it is."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import act_lightning
from act_lightning.architecture import module_type
from act_lightning.cards.record import short_name
from act_lightning.checkpoints.compatibility import pair_issues
from act_lightning.checkpoints.export import bytes_bar, output_issues
from act_lightning.checkpoints.files import atomic_folder, no_wider_than, save_tensors
from act_lightning.checkpoints.manifest import write_manifest
from act_lightning.checkpoints.models import meta_model
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.weight_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

EXTRACTION = "extraction.json"


@dataclass(frozen=True)
class Share:
    """A part of the change from base to tuned model, and how much of it an adapter leaves out.

    Attributes:
        name: The type of the modules, with the parameter's name if that is no matrix of a Linear.
        changed: ‖Δ‖_F.
        left_out: ‖Δ − s·B·A‖_F.
    """

    name: str
    changed: float
    left_out: float

    @property
    def error(self) -> float:
        """‖Δ − s·B·A‖_F / ‖Δ‖_F."""
        return self.left_out / self.changed if self.changed else 0.0

    @classmethod
    def total(cls, name: str, shares: Iterable[Share]) -> Share:
        """The share of several parts together."""
        squares = [(share.changed**2, share.left_out**2) for share in shares]
        changed, left_out = (sum(values) ** 0.5 for values in zip(*squares, strict=True)) if squares else (0.0, 0.0)
        return cls(name, changed, left_out)


@dataclass(frozen=True)
class Extraction:
    """What an adapter holds of a change.

    Attributes:
        rank: r of every matrix.
        adapted: The types of modules that the adapter changes.
        omitted: Types of parameters that changed and that no adapter of Linear modules can change.
    """

    rank: int
    adapted: tuple[Share, ...]
    omitted: tuple[Share, ...]

    def to_json(self) -> dict[str, Any]:
        """The content of :data:`EXTRACTION`, with the errors of types, of what is adapted, and of the whole change."""
        shares = {"adapted": Share.total("", self.adapted), "whole": Share.total("", self.adapted + self.omitted)}
        return {
            "rank": self.rank,
            "error": {name: share.error for name, share in shares.items()},
            "adapted": [{**asdict(share), "error": share.error} for share in self.adapted],
            "omitted": [asdict(share) for share in self.omitted],
        }


def extract_lora(
    base: Path, tuned: Path, rank: int, out: Path, names: tuple[str, str] | None = None, overwrite: bool = False
) -> Extraction:
    """Write the LoRA adapter of ``base`` that is nearest to ``tuned``, in the format of PEFT.

    Each Linear's Δ is decomposed (a truncated SVD, the nearest matrix of that rank: Eckart and Young), one matrix in
    memory at a time. Embedding, head, norms, biases and packed experts are left out, and named in the result.

    Args:
        base: The model that the adapter will be used with.
        tuned: The model whose weights are approximated.
        rank: r of every matrix.
        out: The folder to write.
        names: What base and tuned model are called in the adapter, by default by their folders.
        overwrite: Whether an earlier export in ``out`` may be replaced.

    Raises:
        ActError: The two do not match, no Linear differs, a value is NaN or infinite, or ``out`` cannot be written.
    """
    raise_if_any(output_issues(out, base, "--out", [tuned], overwrite))
    if rank < 1:
        raise ActError(ConfigIssue("--rank", rank, "must be at least 1", "Write a number such as 32."))
    skeleton = meta_model(base)
    tensors: dict[str, Tensor] = {}
    adapted, omitted = defaultdict[str, list[Share]](list), defaultdict[str, list[Share]](list)
    with CheckpointReader(base) as base_reader, CheckpointReader(tuned) as tuned_reader:
        raise_if_any(pair_issues(base_reader.spec, tuned_reader.spec, str(tuned), "--tuned"))
        shapes, vocabulary = base_reader.spec.shapes, base_reader.spec.vocabulary
        if resized := [name for name in vocabulary if tuned_reader.spec.shapes[name] != shapes[name]]:
            problem = f"must have the base's vocabulary, and {' and '.join(resized)} differ in size"
            raise ActError(ConfigIssue("--tuned", str(tuned), problem, "Give a model of the base's vocabulary."))
        linear = {f"{name}.weight" for name, module in skeleton.named_modules() if isinstance(module, nn.Linear)}
        stored = base_reader.stored_names
        with bytes_bar("Decomposing", len(stored)) as bar:
            for name in stored:
                bar.update()
                change = tuned_reader.read(name).float() - base_reader.read(name).float()
                if name in linear and name not in vocabulary:
                    b, a = low_rank(change, rank)
                    key = f"base_model.model.{name.removesuffix('.weight')}"
                    tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
                    kind, shares, rest = module_type(name.removesuffix(".weight")), adapted, change - b @ a
                else:
                    owner, _, leaf = name.rpartition(".")
                    kind = module_type(owner) if leaf == "weight" else f"{module_type(owner)}.{leaf}"
                    shares, rest = omitted, change
                shares[kind].append(Share(kind, _norm(change), _norm(rest)))
    extraction = Extraction(rank, _totals(adapted), _totals(omitted))
    if not extraction.adapted:
        problem = "must differ from the base in a Linear of its layers, and does not"
        raise ActError(ConfigIssue("--tuned", str(tuned), problem, "Give the tuned model."))
    kinds = [share.name for share in extraction.adapted]
    tensors = {key: values for key, values in tensors.items() if module_type(key.rsplit(".lora_", 1)[0]) in kinds}
    base_name, tuned_name = (short_name(name) for name in names or (str(base.resolve()), str(tuned.resolve())))
    config = {
        **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name},
        **{"r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "target_modules": kinds, "bias": "none"},
        **{"fan_in_fan_out": False, "init_lora_weights": True, "inference_mode": True, "modules_to_save": None},
    }
    record = {"base": base_name, "tuned": tuned_name, "act_lightning": act_lightning.__version__}
    with no_wider_than(base, tuned), atomic_folder(out) as folder:
        save_tensors(folder / ADAPTER_WEIGHTS, tensors, {"format": "pt"})
        for file, content in ((ADAPTER_CONFIG, config), (EXTRACTION, record | extraction.to_json())):
            (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        write_manifest(folder)
    return extraction


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _totals(shares: dict[str, list[Share]]) -> tuple[Share, ...]:
    """The types that changed, each as one share."""
    totals = (Share.total(name, parts) for name, parts in shares.items())
    return tuple(share for share in totals if share.changed)


def low_rank(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B ``[out, rank]`` and A ``[rank, in]`` whose product is nearest to ``change`` ``[out, in]``, all float32.

    Rows that are zero, as those that a transfer did not select, are left out of the decomposition. Singular values are
    shared out between both factors; beyond the rank of ``change`` both are zero.

    >>> b, a = low_rank(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), rank=2)
    >>> (b @ a).round(decimals=4).tolist(), b.shape, a.shape
    ([[0.0, 0.0], [3.0, 4.0]], torch.Size([2, 2]), torch.Size([2, 2]))
    """
    b, a = change.new_zeros(len(change), rank), change.new_zeros(rank, change.shape[1])
    rows = change.any(1).nonzero().squeeze(1)
    if not len(rows):
        return b, a
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    u, s, vh = torch.linalg.svd(change[rows].to(device), full_matrices=False)
    count, roots = min(rank, len(s)), s[:rank].sqrt()
    b[rows, :count] = (u[:, :rank] * roots).to(b.device)[:, :count]
    a[:count] = (roots[:, None] * vh[:rank]).to(a.device)
    return b, a
