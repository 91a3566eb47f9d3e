"""LoRA adapters of PEFT: an adapter with its base model as one checkpoint, whose rows are those of W + s·B·A."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from act_lightning.channels import ChannelInventory, as_matrix, matrix_shape
from act_lightning.checkpoints.files import atomic_folder, last_part, no_wider_than, read_json
from act_lightning.checkpoints.weight_files import (
    ADAPTER,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    aux_files,
    check_finite,
    identify,
    is_weightless,
    link_issues,
    read_header,
)
from act_lightning.defaults import cache_folder
from act_lightning.errors import ActError, ConfigIssue, raise_if_any, summarize_names

_PREFIX = "base_model.model."
_PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "base_layer.weight": "base",
}
_INITIALIZATIONS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base's weights as they are."""
_READ_SETTINGS = ("peft_type", "bias", "init_lora_weights", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora")
_UNUSED_SETTINGS = (  # of training, or evident from the tensors
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "task_type", "inference_mode", "r"),
    *("target_modules", "exclude_modules", "modules_to_save", "lora_dropout", "fan_in_fan_out", "rank_pattern"),
    *("layers_to_transform", "layers_pattern", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("runtime_config", "megatron_core", "qalora_group_size"),
)
_MEANINGS = {"target_parameters": " (LoRA on packed experts)"}
_PLAIN_PATTERN = re.compile(r"\^?[\w-]+(\\?\.[\w-]+)*")  # any other, of a stranger, may take for ever to match
_MERGE = "Merge it with PEFT (merge_and_unload), save the result, and name that folder."
_KEPT_TENSORS = 8  # of as many parameters: one or two for each thread of a merge
_LEAST_ROWS = 16  # of a product: with fewer, some CPUs add in another order than in that of the whole matrices


def split_adapter(name: str) -> tuple[str, str] | None:
    """Base model and adapter in a name such as ``Qwen/Qwen2.5-7B+runs/adapter``, which mergekit writes alike.

    >>> split_adapter("Qwen/Qwen2.5-7B+runs/adapter"), split_adapter("runs/base")
    (('Qwen/Qwen2.5-7B', 'runs/adapter'), None)
    """
    base, plus, adapter = name.rpartition("+")
    return (base, adapter) if plus and base and adapter else None


def join_adapter(base: Path, adapter: Path, base_name: str, setting: str) -> Path:
    """A folder in the cache that links to the files of ``base``, and in a folder of its own to those of ``adapter``.

    Everything that reads checkpoints reads it as one model. The tokenizer is the adapter's, if it has one.

    Args:
        base: The folder of the model that the adapter was trained on.
        adapter: The folder of the adapter.
        base_name: What the user calls the base.
        setting: The setting that names both, for messages.

    Raises:
        ActError: A file is missing, the adapter was trained on another model, or is not a plain LoRA adapter.
    """
    config = _read_config(adapter, setting)
    raise_if_any((*link_issues(adapter, setting), *_config_issues(config, adapter, setting)))
    raise_if_any(_base_issues(config, base, base_name, adapter, setting))
    links = {path.name: path for path in base.glob("*.safetensors*")}
    links |= {str(path.relative_to(base)): path for path in aux_files(base)}
    own = {str(path.relative_to(adapter)): path for path in aux_files(adapter)}
    if any(name.startswith("tokenizer") for name in own):
        links |= {name: path for name, path in own.items() if not name.endswith("config.json") or "tokenizer" in name}
    links |= {f"{ADAPTER}/{name}": adapter / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    cards = {"README.md": base / "README.md", f"{ADAPTER}/README.md": adapter / "README.md"}
    links |= {name: path for name, path in cards.items() if path.is_file()}
    links = {name: path.resolve() for name, path in links.items()}
    fingerprint = hashlib.sha256(f"{base.resolve()}\n{adapter.resolve()}".encode()).hexdigest()[:16]
    joined = cache_folder("adapters") / fingerprint / adapter.resolve().name
    existing = {str(path.relative_to(joined)): path.resolve() for path in joined.rglob("*") if path.is_symlink()}
    if existing != links:
        with no_wider_than(base, adapter), atomic_folder(joined, durable=False) as temporary:
            for name, path in links.items():
                link = temporary / name
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(path)
    return joined


def has_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds a model with an adapter."""
    return (folder / ADAPTER).is_dir()


def is_joined(folder: Path) -> bool:
    """Whether ``folder`` is one that :func:`join_adapter` has made, whose links are ours."""
    return folder.resolve().is_relative_to(cache_folder("adapters").resolve())


def _read_config(adapter: Path, setting: str) -> dict[str, Any]:
    try:
        config = read_json(adapter / ADAPTER_CONFIG)
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        problem = f"must hold an {ADAPTER_CONFIG} that can be read ({error})"
        raise ActError(ConfigIssue(setting, str(adapter), problem, "Name the folder that PEFT has saved.")) from error
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        problem, hint = f"must hold {ADAPTER_WEIGHTS}", "Load and save the adapter with PEFT, which writes that file."
        raise ActError(ConfigIssue(setting, str(adapter), problem, hint))
    return config


def _config_issues(config: Mapping[str, Any], adapter: Path, setting: str) -> Iterator[ConfigIssue]:
    """Settings of an adapter that change how it is merged, and that are not understood here."""
    expected: dict[str, Collection[Any]] = {"peft_type": ("LORA",), "bias": ("none",)}
    expected |= {"init_lora_weights": _INITIALIZATIONS}
    wrong = [f"{key}: {config[key]!r}" for key, values in expected.items() if config.get(key, "") not in ("", *values)]
    if "peft_type" not in config:
        wrong.append("no peft_type")
    wrong += [
        f"{key}: {value!r}{_MEANINGS.get(key, '')}"
        for key, value in config.items()
        if key not in _READ_SETTINGS and key not in _UNUSED_SETTINGS and value not in (None, False, {}, [], "")
    ]
    patterns, saved = config.get("alpha_pattern") or {}, config.get("modules_to_save") or []
    alphas = [config.get("lora_alpha"), *(patterns.values() if isinstance(patterns, dict) else [None])]
    if any(isinstance(alpha, bool) or not isinstance(alpha, (int, float)) for alpha in alphas):
        wrong.append(f"lora_alpha: {config.get('lora_alpha')!r}, alpha_pattern: {patterns!r}")
    elif not all(_PLAIN_PATTERN.fullmatch(pattern) for pattern in patterns):
        wrong.append(f"alpha_pattern: {patterns!r} (not names of modules, or their ends)")
    if not isinstance(saved, list) or not all(isinstance(name, str) and name for name in saved):
        wrong.append(f"modules_to_save: {saved!r}")
    if wrong:
        problem = (
            f"must be a plain LoRA, rsLoRA or DoRA adapter, and its {ADAPTER_CONFIG} says {summarize_names(wrong)}"
        )
        yield ConfigIssue(setting, str(adapter), problem, _MERGE)


def _base_issues(
    config: Mapping[str, Any], base: Path, base_name: str, adapter: Path, setting: str
) -> Iterator[ConfigIssue]:
    """The issue of an adapter that was trained on another model than ``base``, by the name in its config.

    If that is a folder here, its weights decide. Otherwise the last part of the name does, for a model may have moved.
    """
    recorded = config.get("base_model_name_or_path")
    if not isinstance(recorded, str) or not recorded:
        problem = f"must say which model it was trained on: base_model_name_or_path in {ADAPTER_CONFIG} is {recorded!r}"
        yield ConfigIssue(setting, str(adapter), problem, "Write the base model's name there.")
        return
    with suppress(OSError, RuntimeError, ActError):
        folder = Path(recorded).expanduser()
        if folder.is_dir() and not is_weightless(folder) and not is_weightless(base):
            if identify(folder).digest != identify(base).digest:
                yield _other_base(recorded, base_name, setting)
            return
    names = {last_part(base_name), base.resolve().name}
    if base.resolve().parent.name == "snapshots":  # of the hub's cache, models--owner--name/snapshots/commit
        names.add(base.resolve().parents[1].name.rpartition("--")[2])
    if last_part(recorded) not in names:
        yield _other_base(recorded, base_name, setting)


def _other_base(recorded: str, base_name: str, setting: str) -> ConfigIssue:
    problem = f"must be joined to the model that the adapter was trained on, {recorded}"
    hint = f"Write {recorded}+ADAPTER; if that is the same model, write its name here into {ADAPTER_CONFIG}."
    return ConfigIssue(setting, base_name, problem, hint)


@dataclass(frozen=True)
class _Update:
    """How an adapter changes one parameter: keys of its tensors, or the one that replaces the parameter.

    Attributes:
        keys: Keys by ``A``, ``B``, of DoRA ``magnitude``, and ``base``, what replaces W (PEFT saves embeddings that it
            adapts); or by ``whole``.
        scaling: s.
        transposed: Whether rows of the parameter are columns of B·A: of Conv1D and embeddings.
    """

    keys: Mapping[str, str]
    scaling: float = 1.0
    transposed: bool = False


class LoraAdapter:
    """The adapter in a folder that :func:`join_adapter` has made.

    Rows are, to the bit on one machine, those that PEFT's ``merge_and_unload`` gives for a base in its stored dtype:
    B·A in float32, times s, added to the row, and rounded once. DoRA (https://arxiv.org/abs/2402.09353) scales the sum
    to the trained norm of the row; rsLoRA (https://arxiv.org/abs/2312.03732) has s = α / √r.

    Args:
        folder: The folder.
        shapes: The shapes of the base's parameters by name.
        ties: Groups of names of one parameter.
        vocabulary: Parameters with a row for each token, which PEFT may save whole.
        channels: The base's channels, which tell Linear from Conv1D.

    Attributes:
        names: The parameters that the adapter changes.

    Raises:
        ActError: A tensor belongs to no parameter of the base, is of another shape, or changes a tied parameter.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, tuple[int, ...]],
        ties: Collection[Collection[str]],
        vocabulary: Collection[str],
        channels: ChannelInventory | None,
    ) -> None:
        self._path = folder / ADAPTER / ADAPTER_WEIGHTS
        config = _read_config(folder / ADAPTER, str(folder))
        shapes_of_keys = {key: entry.shape for key, entry in read_header(self._path).entries.items()}
        dims = {owned.name: owned.dim for module in channels.modules for owned in module.owned} if channels else {}
        saved = tuple(config.get("modules_to_save") or ())
        tied = {name for group in ties for name in group}
        keys: dict[str, dict[str, str]] = {}
        wrong = []
        for key in shapes_of_keys:
            module, part = _split_key(key)
            name = f"{module}.weight" if part else module
            is_saved = name in vocabulary or (bool(saved) and module.rpartition(".")[0].endswith(saved))
            if name in tied:
                wrong.append(f"{key} (of a tied matrix)")
            elif name in shapes and (name in dims if part else is_saved):
                keys.setdefault(name, {})[part or "whole"] = key
            else:
                wrong.append(key)
        self._updates = {}
        for name, parts in keys.items():
            of_parts, transposed = {part: shapes_of_keys[key] for part, key in parts.items()}, dims.get(name) == 1
            if not _fits(of_parts, shapes[name], transposed, bool(config.get("use_dora"))):
                dora = " with DoRA" if config.get("use_dora") else ""
                wrong.append(
                    f"{', '.join(f'{parts[part]} {of_parts[part]}' for part in parts)} for {shapes[name]}{dora}"
                )
            elif "whole" in parts:
                self._updates[name] = _Update(parts)
            else:
                self._updates[name] = _Update(parts, _scaling(config, name, of_parts["A"][0]), transposed)
        if wrong:
            names = summarize_names(wrong)
            problem = f"must change matrices of Linear, Conv1D and Embedding modules of its base, unlike {names}"
            raise ActError(ConfigIssue(str(folder), folder.name, problem, _MERGE))
        self.names = tuple(self._updates)
        self._tensors = lru_cache(_KEPT_TENSORS)(self._read)

    def rows(self, name: str, base: Tensor, index: Tensor | None = None) -> Tensor:
        """Rows of a parameter with the adapter, given those of the base, in the same shape and dtype.

        ``index`` is int64 ``[rows]``, of the parameter seen as a matrix; by default, all of it is given. A parameter
        that stays is returned as it is.

        Raises:
            ActError: A value of the adapter, or of the result, is NaN or infinite.
        """
        update = self._updates.get(name)
        if update is None or not len(base):
            return base
        index = torch.arange(matrix_shape(base.shape)[0]) if index is None else index
        tensors = self._tensors(name)
        if "whole" in tensors:
            result = as_matrix(tensors["whole"])[index].view(base.shape).to(base.dtype)
        else:
            some = index.repeat(-(-_LEAST_ROWS // len(index))) if len(index) < _LEAST_ROWS else index
            a, b = tensors["A"], tensors["B"]
            base = tensors["base"][index].to(base.dtype) if "base" in tensors else base
            product = (b @ a[:, some]).T if update.transposed else b[some] @ a
            delta = (product * update.scaling)[: len(index)]
            if "lora_embedding_A" in update.keys["A"]:
                delta = delta.to(base.dtype)  # as PEFT does with embeddings only
            total = base.to(torch.promote_types(base.dtype, delta.dtype)) + delta
            if "magnitude" in tensors:
                norms = torch.linalg.norm(total, dim=1)
                total = (tensors["magnitude"][index] / norms).view(-1, 1) * total
            result = total.to(base.dtype)
        check_finite(result, str(self._path), name, index)
        return result

    def _read(self, name: str) -> dict[str, Tensor]:
        with safe_open(self._path, framework="pt") as file:
            tensors = {part: file.get_tensor(key) for part, key in self._updates[name].keys.items()}
        for part, tensor in tensors.items():
            check_finite(tensor, str(self._path), self._updates[name].keys[part])
        return {part: tensor if part in ("whole", "base") else tensor.float() for part, tensor in tensors.items()}


def _scaling(config: Mapping[str, Any], name: str, rank: int) -> float:
    """The s of a parameter: α / r, or α / √r of rsLoRA, with the α of the first pattern that matches its module."""
    module, alpha = f".{name.removesuffix('.weight')}", config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        ending = pattern.replace("\\.", ".")
        if module == f".{ending.removeprefix('^')}" or module.endswith(f".{ending}"):
            alpha = value
            break
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _split_key(key: str) -> tuple[str, str | None]:
    """The module of a tensor and which part of its update it is; or the parameter that it replaces, and ``None``."""
    for suffix, part in _PARTS.items():
        if key.endswith(f".{suffix}"):
            return key.removeprefix(_PREFIX).removesuffix(f".{suffix}"), part
    return key.removeprefix(_PREFIX), None


def _fits(parts: Mapping[str, tuple[int, ...]], shape: tuple[int, ...], transposed: bool, is_dora: bool) -> bool:
    """Whether an update's tensors, given by shape, make up a matrix of ``shape``; DoRA needs rows of a Linear."""
    if "whole" in parts:
        return parts == {"whole": shape}
    own = {"A", "B", "magnitude"} if is_dora else {"A", "B"}
    if parts.keys() - {"base"} != own or any(len(parts[part]) != 2 for part in "AB"):
        return False
    if parts.get("base", shape) != shape:
        return False
    (rank, columns), (rows, other_rank) = parts["A"], parts["B"]
    if is_dora and (transposed or parts["magnitude"] != (rows,)):
        return False
    return rank == other_rank > 0 and shape == ((columns, rows) if transposed else (rows, columns))
