"""Config, model and tokenizer of a folder: as shapes without weights, whole, or in 8 or 4 bits."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from act_lightning.architecture import tied_groups
from act_lightning.checkpoints.bin_conversion import BIN_PREFIX, convert_bin
from act_lightning.checkpoints.weight_files import (
    CONFIG,
    FLOATS,
    check_finite,
    is_weightless,
    read_headers,
    require_weights,
)
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


LOCAL = {"local_files_only": True, "trust_remote_code": False}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_config(folder: Path) -> PretrainedConfig:
    """The config in ``folder``.

    Raises:
        ActError: It is missing or broken, needs code of its own, or is of quantized weights.
    """
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, **LOCAL)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ActError(unloadable(folder, "must hold a config.json that transformers knows", error)) from error
    if getattr(config, "quantization_config", None) is not None:
        problem = "must hold plain floating-point weights, and its config has a quantization_config"
        raise ActError(ConfigIssue(str(folder), config.model_type, problem, "Give the original, unquantized model."))
    return config


def meta_model(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The causal language model of ``folder`` on the meta device: names, shapes and ties, without any weights.

    Args:
        folder: A folder that holds a config.
        dtype: The dtype of all parameters; by default the one that the config names.

    Raises:
        ActError: As :func:`load_config`, or the config is of no causal language model.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(folder)
    try:
        with quiet(), torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=dtype or config.dtype, trust_remote_code=False
            )
    except (ValueError, TypeError, RuntimeError) as error:
        raise ActError(unloadable(folder, "must be the config of a causal language model", error)) from error
    return model


def make_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Give values to what a model keeps beside its parameters and no checkpoint holds, such as rotary frequencies.

    As transformers does when it loads: the parameters, still without memory, are not touched by this.
    """
    for name, buffer in list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner)._buffers[leaf] = torch.empty_like(buffer, device=device)
    for module in model.modules():
        if next(module.buffers(recurse=False), None) is not None:
            model._init_weights(module)


def load_model(
    folder: Path, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> PreTrainedModel:
    """The causal language model of ``folder`` with all its weights, in evaluation mode.

    Args:
        folder: A Hugging Face folder with safetensors weights.
        dtype: The dtype of all parameters; by default that in which most are stored.
        device: Where to put it; by default the CPU.

    Raises:
        ActError: Files missing or truncated, weights missing, left over, of other shapes or not finite, tied by the
            config but stored with different values, quantized, or in need of code of their own.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(folder)
    require_weights(folder, str(folder))
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype or stored_dtype(folder),
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # reported below, with everything else that does not fit
                output_loading_info=True,
                **LOCAL,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ActError(unloadable(folder, "must load as a causal language model", error)) from error
    model: PreTrainedModel = loaded[0]
    _check_loaded(model, loaded[1], folder)
    module: nn.Module = model  # whose methods have types, unlike transformers' wrappers
    module.eval().to(device or "cpu")
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``.

    Raises:
        ActError: It is missing, broken, or needs code of its own.
    """
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **LOCAL)
    except Exception as error:  # tokenizer backends raise whatever they like, bare Exception included
        raise ActError(unloadable(folder, "must hold a tokenizer that transformers can load", error)) from error
    return tokenizer


def stored_dtype(folder: Path) -> torch.dtype:
    """The floating dtype of most elements in ``folder``; without weights, the one its config names, or float32."""
    if is_weightless(folder):
        named = load_config(folder).dtype
        return named if isinstance(named, torch.dtype) else torch.float32
    counts: Counter[torch.dtype] = Counter()
    for header in read_headers(folder, str(folder)).values():
        for entry in header.entries.values():
            if entry.dtype in FLOATS:
                counts[entry.dtype] += prod(entry.shape)
    return max(counts, key=lambda dtype: counts[dtype], default=torch.float32)


def resolve_dtype(name: str, folder: Path, setting: str = "model.dtype") -> torch.dtype:
    """The dtype called ``name``; ``auto`` is the one in which ``folder`` is stored.

    Raises:
        ActError: There is no such name.
    """
    if name == "auto":
        return stored_dtype(folder)
    if name not in _DTYPES:
        raise ActError(ConfigIssue(setting, name, f"must be one of auto, {', '.join(_DTYPES)}", "Write one of these."))
    return _DTYPES[name]


def _check_loaded(model: PreTrainedModel, report: Mapping[str, Any], folder: Path) -> None:
    rules = {
        "missing_keys": "must hold every parameter of the model",
        "unexpected_keys": "must hold parameters of the model only",
        "mismatched_keys": "must hold the shapes that its config gives",
    }
    hint = "Give the folder of a plain causal language model whose config belongs to its weights."
    found = {problem: sorted(map(str, report[kind])) for kind, problem in rules.items() if report[kind]}
    raise_if_any(ConfigIssue(str(folder), keys[:5], problem, hint) for problem, keys in found.items())
    _check_ties(model, folder)
    for name, parameter in model.named_parameters():
        check_finite(parameter, str(folder), name)


def _check_ties(model: PreTrainedModel, folder: Path) -> None:
    """Refuse what transformers only logs: it unties weights that the config ties when both are stored and differ."""
    tied = {name for group in tied_groups(model) for name in group}
    loose = sorted(model.get_expanded_tied_weights_keys(all_submodels=True).keys() - tied)
    if loose:
        raise ActError(untied_issue(str(folder), loose))


def untied_issue(place: str, keys: list[str]) -> ConfigIssue:
    """The issue of weights that the config ties, and the checkpoint stores twice with different values."""
    hint = "Write tie_word_embeddings: false into config.json if both are meant as they are."
    return ConfigIssue(place, keys, "must hold equal values, for the config ties them", hint)


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back transformers' progress bars and loading report; what is wrong in the latter is an error of ours."""
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def unloadable(folder: Path, problem: str, error: Exception) -> ConfigIssue:
    """The issue of a folder that transformers cannot load."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return ConfigIssue(
        str(folder), folder.name, f"{problem} ({reason})", "Give a complete folder of a model on the hub's layout."
    )


QUANTIZATIONS = ("8bit", "4bit")


def load_quantized(folder: Path, dtype: torch.dtype, device: torch.device, quantization: str) -> PreTrainedModel:
    """The causal language model of ``folder`` with the matrices of its layers quantized, in evaluation mode.

    By bitsandbytes: LLM.int8() (https://arxiv.org/abs/2208.07339), or 4-bit NormalFloat
    (https://arxiv.org/abs/2305.14314). Embedding, norms and head stay as they are.

    Args:
        folder: A Hugging Face folder with safetensors weights, not quantized.
        dtype: The dtype of what is not quantized, and of activations.
        device: Where to put it.
        quantization: ``8bit`` or ``4bit``.

    Raises:
        ActError: Files are missing, or it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = load_config(folder)
    require_weights(folder, str(folder))
    settings: dict[str, Any] = {"load_in_8bit": True}
    if quantization == "4bit":
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    try:
        with quiet():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                quantization_config=BitsAndBytesConfig(**settings),
                device_map={"": device},
                use_safetensors=True,
                **LOCAL,
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ActError(unloadable(folder, f"must load in {quantization}", error)) from error
    model.train(False)
    return model


LABORATORY = "lab:"
_TEXTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*", "README.md")
_DUPLICATES = ("original/*", "onnx/*", "consolidated*")  # the same weights once more, in other formats
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def locate(model: str | Path, revision: str | None = None, setting: str = "model.target", weights: bool = True) -> Path:
    """Find the folder of ``model``, fetching it where it is not here yet.

    Args:
        model: A folder, which comes first, a hub id such as ``Qwen/Qwen2.5-7B-Instruct``, or ``lab:generalist``. With
            ``bin:`` before a folder or hub id, its ``pytorch_model.bin`` is read, and converted into the cache.
        revision: A commit, branch or tag of the hub.
        setting: Where ``model`` was given, for messages.
        weights: Whether to fetch the weights of a hub model too; a plan needs only its config.

    Returns:
        A folder that holds a ``config.json``.

    Raises:
        ActError: No such folder or hub model, no network to fetch it, no config, or a revision of what has none.
    """
    name = str(model)
    folder = Path(name).expanduser()
    if folder.is_dir():
        _refuse_revision(folder, revision, setting)
        return _with_config(folder, setting)
    if name.startswith(LABORATORY):
        _refuse_revision(name, revision, setting)
        from act_lightning.lab.models import model_folder

        return _with_config(model_folder(name.removeprefix(LABORATORY)), setting)
    if name.startswith(BIN_PREFIX):
        return _locate_pickled(name.removeprefix(BIN_PREFIX), revision, setting, weights)
    if isinstance(model, Path) or not _HUB_ID.fullmatch(name):
        raise ActError(ConfigIssue(setting, name, "must be a folder that exists", "Correct the path."))
    return _with_config(_download(name, revision, setting, weights), setting)


def _locate_pickled(name: str, revision: str | None, setting: str, weights: bool) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir() and _HUB_ID.fullmatch(name):
        folder = _with_config(_download(name, revision, setting, weights, "*.bin"), setting)
        return convert_bin(folder, setting) if weights else folder
    return convert_bin(locate(folder, revision, setting, weights), setting)


def _refuse_revision(model: str | Path, revision: str | None, setting: str) -> None:
    if revision is not None:
        problem = f"must be a hub id where a revision ({revision}) is given"
        raise ActError(
            ConfigIssue(setting, str(model), problem, "Remove the revision, or name the model by its hub id.")
        )


def _with_config(folder: Path, setting: str) -> Path:
    if not (folder / CONFIG).is_file():
        adapter = (folder / "adapter_config.json").is_file()
        problem = f"must hold a {CONFIG}" + (", and holds an adapter" if adapter else "")
        hint = "Merge the adapter into its base model first." if adapter else "Give the folder of a whole model."
        raise ActError(ConfigIssue(setting, str(folder), problem, hint))
    return folder


def _download(model: str, revision: str | None, setting: str, weights: bool, kind: str = "*.safetensors") -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = [*_TEXTS, kind] if weights else [*_TEXTS]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model, revision=revision, allow_patterns=patterns, ignore_patterns=[*_DUPLICATES]
            )
        )
    except HFValidationError as error:
        problem = f"must be a folder that exists or a hub id ({error})"
        raise ActError(ConfigIssue(setting, model, problem, "Correct the name.")) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        problem = f"must be a folder that exists or a hub model{at} that can be fetched ({_first_line(error)})"
        hint = "Check name, revision, network and `hf auth login`, or give the path of a local copy."
        raise ActError(ConfigIssue(setting, model, problem, hint)) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"
