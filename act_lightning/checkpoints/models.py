"""Where a model is, and its config, tokenizer and weights: as shapes only, whole, or in 8 or 4 bits."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from act_lightning.architecture import TOWER_KEYS, decoder_obstacle, persistent_buffers, tied_groups
from act_lightning.checkpoints.adapters import has_adapter, is_joined, join_adapter, split_adapter
from act_lightning.checkpoints.bin_conversion import BIN_PREFIX, convert_bin
from act_lightning.checkpoints.files import read_json
from act_lightning.checkpoints.weight_files import (
    ADAPTER,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    FLOATS,
    check_finite,
    is_weightless,
    link_issues,
    read_headers,
)
from act_lightning.defaults import LABORATORY
from act_lightning.errors import ActError, ConfigIssue, raise_if_any

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

QUANTIZATIONS = ("8bit", "4bit")
_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TEXTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*", "README.md")
_DUPLICATES = ("original/*", "onnx/*", "consolidated*")  # the same weights in other formats
_IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
"""Those of transformers; any other name in a config is that of a kernel on the hub."""
_MAX_LAYERS = 1_000  # where no weight files tell; the largest models have 126
_LAYER_COUNT = re.compile(r"(num|n)_(\w+_)?layers?")
_LARGEST = {
    r"(layers?|depth|blocks)$": _MAX_LAYERS,
    r"expert|labels": 1 << 15,
    r"(size|dim|heads|embd|inner|d_model|d_ff|hidden)(_|$)": 1 << 21,
    r"": 1 << 40,
}
"""The largest whole number in a config by a pattern of its name."""
_MERGE_ADAPTER = "Merge the adapter into its base model first, with PEFT."
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def locate(
    model: str | Path,
    revision: str | None = None,
    setting: str = "model.target",
    weights: bool = True,
    adapters: bool = False,
) -> Path:
    """Find the folder of ``model``; a hub model is downloaded if it is not in the cache.

    Args:
        model: A folder (tried first), a hub id such as ``Qwen/Qwen2.5-7B-Instruct``, or ``lab:generalist``. With
            ``bin:`` before a folder or hub id, its ``pytorch_model.bin`` is read, and converted into the cache.
        revision: A commit, branch or tag of the hub.
        setting: The setting that names the model, for messages.
        weights: Whether to download the weights of a hub model too; a plan needs only its config.
        adapters: Whether ``model`` may be a base model and a LoRA adapter of it, such as ``Qwen/Qwen2.5-7B+./adapter``.

    Raises:
        ActError: The model or its config does not exist or cannot be downloaded, or a revision is given for a folder.
    """
    name = str(model)
    folder, is_folder = _as_folder(name, setting)
    if not is_folder and (parts := split_adapter(name)):
        if not adapters:
            problem, hint = "must be a whole model here; only a source may be an adapter", _MERGE_ADAPTER
            raise ActError(ConfigIssue(setting, name, problem, hint))
        return _locate_adapter(*parts, revision, setting, weights)
    if is_folder or name.startswith(LABORATORY):
        if revision is not None:
            problem = f"must be a hub id where a revision ({revision}) is given"
            hint = "Remove the revision, or name the model by its hub id."
            raise ActError(ConfigIssue(setting, str(folder), problem, hint))
        if not folder.is_dir():
            from act_lightning.lab.models import model_folder

            folder = model_folder(name.removeprefix(LABORATORY))
    elif name.startswith(BIN_PREFIX):
        bin_model = name.removeprefix(BIN_PREFIX)
        folder = Path(bin_model).expanduser()
        if folder.is_dir() or not _HUB_ID.fullmatch(bin_model):
            return convert_bin(locate(folder, revision, setting, weights), setting)
        folder = _download(bin_model, revision, setting, "*.bin" if weights else None)
    elif isinstance(model, Path) or not _HUB_ID.fullmatch(name):
        raise ActError(ConfigIssue(setting, name, "must be a folder that exists", "Correct the path."))
    else:
        folder = _download(name, revision, setting, "*.safetensors" if weights else None)
    _check_folder(folder, name, setting, adapters)
    return convert_bin(folder, setting) if weights and name.startswith(BIN_PREFIX) else folder


def _check_folder(folder: Path, name: str, setting: str, adapters: bool) -> None:
    """Raise unless ``folder`` holds a whole model, and nothing of it lies elsewhere."""
    if has_adapter(folder) and not (adapters and is_joined(folder)):
        problem = f"must not hold a folder {ADAPTER}, which stands for an adapter"
        raise ActError(ConfigIssue(setting, str(folder), problem, "Name base and adapter: BASE+ADAPTER, as a source."))
    if not (folder / CONFIG).is_file():
        problem, hint = f"must hold a {CONFIG}", "Give the folder of a whole model."
        if (folder / ADAPTER_CONFIG).is_file():
            hint = f"Write BASE+{name}, with the model that it was trained on." if adapters else _MERGE_ADAPTER
            problem = f"{problem}, and holds an adapter"
        raise ActError(ConfigIssue(setting, str(folder), problem, hint))
    raise_if_any([] if has_adapter(folder) else link_issues(folder, setting))


def _as_folder(name: str, setting: str) -> tuple[Path, bool]:
    """The path that ``name`` may be, and whether a folder is there."""
    try:
        folder = Path(name).expanduser()
        return folder, folder.is_dir()
    except (OSError, RuntimeError) as error:  # too long, say, or the home of a user who does not exist
        problem = f"must be a folder that exists ({error})"
        raise ActError(ConfigIssue(setting, name, problem, "Correct the path.")) from error


def _locate_adapter(base: str, adapter: str, revision: str | None, setting: str, weights: bool) -> Path:
    """The folder that joins the model ``base`` and its ``adapter``; ``revision`` is that of the one on the hub."""
    folder, is_folder = _as_folder(adapter, setting)
    of_base = revision is not None and not _as_folder(base, setting)[1]
    if of_base and not is_folder:
        problem = f"must name one model on the hub where a revision ({revision}) is given, and names two"
        raise ActError(ConfigIssue(setting, f"{base}+{adapter}", problem, "Download one of them, and name its folder."))
    base_folder = locate(base, revision if of_base else None, setting, weights)
    if not is_folder:
        if not _HUB_ID.fullmatch(adapter):
            raise ActError(ConfigIssue(setting, adapter, "must be a folder that exists", "Correct the path."))
        folder = _download(adapter, revision, setting, ADAPTER_WEIGHTS)
    return join_adapter(base_folder, folder, base, setting)


def _download(model: str, revision: str | None, setting: str, weight_pattern: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = [*_TEXTS] if weight_pattern is None else [*_TEXTS, weight_pattern]
    try:
        folder = huggingface_hub.snapshot_download(
            model, revision=revision, allow_patterns=patterns, ignore_patterns=[*_DUPLICATES]
        )
    except HFValidationError as error:
        problem = f"must be a folder that exists or a hub id ({error})"
        raise ActError(ConfigIssue(setting, model, problem, "Correct the name.")) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"
        problem = f"must be a folder that exists or a hub model{at} that can be fetched ({reason})"
        hint = "Check name, revision, network and `hf auth login`, or give the path of a local copy."
        raise ActError(ConfigIssue(setting, model, problem, hint)) from error
    return Path(folder)


def load_config(folder: Path) -> PretrainedConfig:
    """The config in ``folder``.

    Raises:
        ActError: It is missing or broken, needs its own code, or is the config of quantized weights.
    """
    try:
        values = read_json(folder / CONFIG)
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise ActError(_load_issue(folder, f"must hold a {CONFIG} that can be read", error)) from error
    raise_if_any(_config_issues(folder, values))
    quantization = values.get("quantization_config")
    if isinstance(quantization, dict) and quantization.get("quant_method") in ("fp8", "mxfp4"):
        method = quantization["quant_method"]
        problem = f"must hold plain floating-point weights, and its config says that they are quantized: {method}"
        hint = f"Run `python -m act_lightning dequantize --model {folder} --dtype bfloat16 --out DIR`, and name DIR."
        raise ActError(ConfigIssue(str(folder), folder.name, problem, hint))
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, **_LOCAL)
    except Exception as error:  # configs of many architectures check themselves, and raise anything
        raise ActError(_load_issue(folder, f"must hold a {CONFIG} that transformers knows", error)) from error
    if getattr(config, "quantization_config", None) is not None:
        problem = "must hold plain floating-point weights, and its config has a quantization_config"
        raise ActError(ConfigIssue(str(folder), config.model_type, problem, "Give the original, unquantized model."))
    return config


def _config_issues(folder: Path, config: Mapping[str, Any]) -> Iterator[ConfigIssue]:
    """What a config must not say, whoever wrote it: where to get code from, or a number of parts that has no end."""
    stored = 0
    if not is_weightless(folder):
        with suppress(ActError):  # whatever needs the weights reports this
            stored = sum(len(header.entries) for header in read_headers(folder, str(folder)).values())
    for name, value in _config_values(config):
        setting, key = f"{folder / CONFIG}, {name}", name.lower().rpartition(".")[2]
        if isinstance(value, str) and "_implementation" in name and value not in _IMPLEMENTATIONS:
            names = ", ".join(_IMPLEMENTATIONS)
            problem = f"must be one of {names}, for a model's files must not name code to be downloaded"
            hint = f"Delete the line from {CONFIG}, and choose with model.attention."
            yield ConfigIssue(setting, value, problem, hint)
        elif type(value) is int:
            limit = min(limit for pattern, limit in _LARGEST.items() if re.search(pattern, key))
            reason = ""
            if stored and _LAYER_COUNT.fullmatch(key):  # each layer has a tensor at least
                limit, reason = stored, ", the number of tensors in the weight files"
            if value > limit:
                hint = "Give the config that belongs to the weights."
                yield ConfigIssue(setting, value, f"must be at most {limit:,}{reason}", hint)


def _config_values(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value in a config with its dotted name, those in nested configs and lists included."""
    rest: list[tuple[str, Any]] = list(config.items())
    while rest:
        name, value = rest.pop()
        if isinstance(value, dict):
            rest += [(f"{name}.{key}", child) for key, child in value.items()]
        elif isinstance(value, list):
            rest += [(name, child) for child in value]
        else:
            yield name, value


def load_generation_config(folder: Path) -> GenerationConfig:
    """The generation config in ``folder``; without one, what transformers derives from the config.

    Raises:
        ActError: It is broken, or as :func:`load_config`.
    """
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").is_file():
        return GenerationConfig.from_model_config(load_config(folder))
    try:
        return GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise ActError(_load_issue(folder, "must hold a generation_config.json that can be read", error)) from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``.

    Raises:
        ActError: It is missing or broken, or needs its own code.
    """
    from transformers import AutoTokenizer

    try:
        with _quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **_LOCAL)
    except Exception as error:  # tokenizer backends raise any exception, bare Exception included
        raise ActError(_load_issue(folder, "must hold a tokenizer that transformers can load", error)) from error
    return tokenizer


def resolve_dtype(name: str, folder: Path, setting: str = "model.dtype") -> torch.dtype:
    """The dtype called ``name``; ``auto`` is the floating dtype of most elements stored in ``folder``.

    Without weights, ``auto`` is the dtype that the config names, or float32.

    Raises:
        ActError: The name is unknown.
    """
    if name in _DTYPES:
        return _DTYPES[name]
    if name != "auto":
        raise ActError(ConfigIssue(setting, name, f"must be one of auto, {', '.join(_DTYPES)}", "Write one of these."))
    if is_weightless(folder):
        dtype = load_config(folder).dtype
        return dtype if isinstance(dtype, torch.dtype) else torch.float32
    counts: Counter[torch.dtype] = Counter()
    for header in read_headers(folder, str(folder)).values():
        for entry in header.entries.values():
            if entry.dtype in FLOATS:
                counts[entry.dtype] += prod(entry.shape)
    return max(counts, key=lambda dtype: counts[dtype], default=torch.float32)


def meta_model(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The causal language model of ``folder`` on the meta device: names, shapes and ties, without any weights.

    Its dtype is by default the one that the config names.

    Raises:
        ActError: As :func:`load_config`, or the config is not of a causal language model.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(folder)
    if obstacle := decoder_obstacle(config.model_type):
        problem = f"must be a decoder of text alone, and {obstacle}"
        raise ActError(ConfigIssue(str(folder), config.model_type, problem, "See docs/models.md for those that work."))
    try:
        with _quiet_transformers(), torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=dtype or config.dtype, trust_remote_code=False
            )
    except Exception as error:  # as of configs
        raise ActError(_load_issue(folder, "must be the config of a causal language model", error)) from error
    return model


def make_buffers(model: PreTrainedModel, device: torch.device, stored: Mapping[str, Tensor]) -> None:
    """Allocate and initialize the buffers of a meta model, such as rotary frequencies, as transformers does.

    Parameters stay on the meta device.

    Args:
        model: The model.
        device: Where its buffers will be.
        stored: The values of buffers that its checkpoint holds, by name.
    """
    for name, buffer in list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner)._buffers[leaf] = torch.empty_like(buffer, device=device)
    for module in model.modules():
        if next(module.buffers(recurse=False), None) is not None:
            model._init_weights(module)
    for name, values in stored.items():
        model.get_buffer(name).copy_(values)


@contextmanager
def _loaded_values_kept() -> Iterator[None]:
    """Have transformers initialize no module of which all values were loaded.

    It does so for any code but its own, which it trusts to leave loaded values alone. Youtu's does not: it zeroes the
    embedding of the padding token.
    """
    from transformers import PreTrainedModel

    initialize = PreTrainedModel._initialize_weights

    def initialize_missing(self: PreTrainedModel, module: nn.Module, is_custom_code: bool = False) -> None:
        initialize(self, module, is_custom_code=True)

    PreTrainedModel._initialize_weights = initialize_missing  # type: ignore[method-assign]
    try:
        yield
    finally:
        PreTrainedModel._initialize_weights = initialize  # type: ignore[method-assign]


def load_model(
    folder: Path, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> PreTrainedModel:
    """The causal language model of ``folder`` with all its weights, in evaluation mode.

    Its dtype is by default that in which most parameters are stored, its device the CPU, whatever torch's default is.

    Raises:
        ActError: Files are missing or truncated; weights are missing, unexpected, of other shapes, not finite or
            quantized; the config ties weights that are stored with different values; or the model needs its own code.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(folder)
    read_headers(folder, str(folder))  # names every missing or truncated file at once
    try:
        # A Trainer builds modules with its device as torch's default, which transformers would take for a device_map.
        with _quiet_transformers(), _loaded_values_kept(), torch.device("cpu"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype or resolve_dtype("auto", folder),
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # reported below, with everything else that does not fit
                output_loading_info=True,
                **_LOCAL,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ActError(_load_issue(folder, "must load as a causal language model", error)) from error
    model: PreTrainedModel = loaded[0]
    problems = {
        "missing_keys": "must hold every parameter of the model",
        "unexpected_keys": "must hold parameters of the model only",
        "mismatched_keys": "must hold the shapes that its config gives",
    }
    loaded[1]["unexpected_keys"] = [key for key in loaded[1]["unexpected_keys"] if not re.search(TOWER_KEYS, key)]
    loaded[1]["missing_keys"] -= persistent_buffers(model).keys()  # transformers has initialized them
    hint = "Give the folder of a plain causal language model whose config belongs to its weights."
    raise_if_any(
        ConfigIssue(str(folder), sorted(map(str, loaded[1][kind]))[:5], problem, hint)
        for kind, problem in problems.items()
        if loaded[1][kind]
    )
    # transformers unties weights that the config ties but that are stored with different values, and only logs it.
    tied = {name for group in tied_groups(model) for name in group}
    if untied := sorted(model.get_expanded_tied_weights_keys(all_submodels=True).keys() - tied):
        raise ActError(untied_issue(str(folder), untied))
    for name, parameter in model.named_parameters():
        check_finite(parameter, str(folder), name)
    module: nn.Module = model  # whose methods have types, unlike transformers' wrappers
    module.eval().to(device or "cpu")
    return model


def load_quantized(folder: Path, dtype: torch.dtype, device: torch.device, quantization: str) -> PreTrainedModel:
    """The causal language model of ``folder`` with its layers' matrices quantized by bitsandbytes, in evaluation mode.

    LLM.int8() (https://arxiv.org/abs/2208.07339) or 4-bit NormalFloat (https://arxiv.org/abs/2305.14314). Embedding,
    norms and head stay as they are, in ``dtype``, which is that of activations too. ``quantization`` is one of
    :data:`QUANTIZATIONS`.

    Raises:
        ActError: Files are missing, the model cannot be loaded, or it is an adapter on its base.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if has_adapter(folder):
        raise ActError(quantized_adapter_issue(quantization))
    config = load_config(folder)
    read_headers(folder, str(folder))  # names every missing or truncated file at once
    settings: dict[str, Any] = {"load_in_8bit": True}
    if quantization == "4bit":
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    try:
        with _quiet_transformers(), _loaded_values_kept():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                quantization_config=BitsAndBytesConfig(**settings),
                device_map={"": device},
                use_safetensors=True,
                **_LOCAL,
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ActError(_load_issue(folder, f"must load in {quantization}", error)) from error
    model.train(False)
    return model


def quantized_adapter_issue(quantization: str) -> ConfigIssue:
    """The issue of an adapter in a pair that is to be quantized."""
    problem = "cannot be combined with an adapter as source, whose sum with its base is not quantized"
    return ConfigIssue("profile.quantization", quantization, problem, _MERGE_ADAPTER)


def untied_issue(location: str, keys: list[str]) -> ConfigIssue:
    """The issue of weights that the config ties, but that are stored twice with different values."""
    hint = "Write tie_word_embeddings: false into config.json if both are meant as they are."
    return ConfigIssue(location, keys, "must hold equal values, for the config ties them", hint)


def _load_issue(folder: Path, problem: str, error: Exception) -> ConfigIssue:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    hint = "Give a complete folder of a model in the hub's layout."
    return ConfigIssue(str(folder), folder.name, f"{problem} ({reason})", hint)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and loading report; what the report says is checked and raised instead."""
    from transformers.utils import logging as hf_logging

    verbosity, progress_bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if progress_bars:
            hf_logging.enable_progress_bar()
