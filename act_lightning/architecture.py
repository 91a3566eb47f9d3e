"""The one place that knows a model's shape: layers, head, embedding, tied weights, widths, and where a module holds it.

Nothing is imported from transformers before a LightningModule is searched: names and sizes need no model.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from act_lightning.channels import other_modalities
from act_lightning.errors import ActError, ConfigIssue

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

HEAD_NAMES = ("lm_head", "embed_out")
"""Last parts of the names that transformers gives to heads, for inventories that come without a model."""
EMBEDDING_NAMES = ("embed_tokens", "embed_in", "wte", "wpe")
"""The same for embeddings of tokens and positions."""
TOWER_KEYS = r"^(model\.)?(vision_(model|tower)|visual|audio_tower|multi_modal_projector|embed_(vision|audio))\."
"""Keys of towers and projectors in a multimodal checkpoint of which transformers loads the text's model alone."""


_ENCODER_DECODER = "it is the decoder of an encoder-decoder, which reads an encoder's states"
_SPEECH = "it reads or writes speech"
_BIDIRECTIONAL = "its attention looks in both directions"
_OTHER_KINDS = {
    **dict.fromkeys(("moshi", "moss_transcribe_diarize"), _SPEECH),
    **dict.fromkeys(("bert-generation", "cpmant", "xlnet"), _BIDIRECTIONAL),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "it drafts tokens from another model's states"),
    "blt": "it reads bytes in patches of which another model tells the lengths",
    "trocr": _ENCODER_DECODER,
}


def module_type(name: str) -> str:
    """The last part of a module's name; of experts with that word.

    >>> module_type("model.layers.3.self_attn.q_proj"), module_type("model.layers.3.mlp.experts.down_proj")
    ('q_proj', 'experts.down_proj')
    """
    *path, leaf = name.split(".")
    return f"experts.{leaf}" if "experts" in path else leaf


def split_layer(name: str) -> tuple[str | None, str]:
    """The number of a module's layer, as text, and its path inside; ``None`` and its whole name outside the layers.

    >>> split_layer("model.layers.3.self_attn.q_proj"), split_layer("lm_head")
    (('3', 'self_attn.q_proj'), (None, 'lm_head'))
    """
    match = re.search(r"\.(\d+)\.(.+)$", name)
    return (match[1], match[2]) if match else (None, name)


def names_of_key(model: PreTrainedModel, key: str) -> tuple[str, str, str]:
    """The names that a checkpoint's key may have in the model: as it is, without and with the base model's prefix."""
    prefix = f"{model.base_model_prefix}."
    return key, key.removeprefix(prefix), f"{prefix}{key}"


def find_language_model(module: nn.Module) -> PreTrainedModel | None:
    """The causal language model of transformers that ``module`` holds, or ``None`` when it holds none yet.

    Raises:
        ActError: If it holds several.
    """
    from transformers import PreTrainedModel

    models: dict[str, PreTrainedModel] = {}
    for name, child in module.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer in models)
        if isinstance(child, PreTrainedModel) and not is_inside and child.get_output_embeddings() is not None:
            models[name] = child
    if len(models) > 1:
        problem = "must hold one causal language model of transformers"
        hint = "Keep a second one (a teacher, say) outside the LightningModule's attributes, in a tuple or list."
        raise ActError(ConfigIssue("LightningModule", ", ".join(models), problem, hint))
    return next(iter(models.values()), None)


def has_weights(model: PreTrainedModel | None) -> bool:
    """Whether there is a model, and its weights are in memory."""
    return model is not None and not any(parameter.is_meta for parameter in model.parameters())


def require_language_model(module: nn.Module) -> PreTrainedModel:
    """The causal language model inside ``module``.

    Raises:
        ActError: If there is none, or it has no weights.
    """
    model = find_language_model(module)
    if model is None or not has_weights(model):
        problem = "must hold one causal language model of transformers, with weights, when fitting starts"
        hint = "Make an AutoModelForCausalLM in __init__ or configure_model and keep it as an attribute."
        raise ActError(ConfigIssue("LightningModule", type(module).__name__, problem, hint))
    return model


def output_embedding(model: PreTrainedModel) -> nn.Linear:
    """The head, which turns hidden states into logits."""
    head: nn.Linear = model.get_output_embeddings()
    return head


def input_embedding(model: PreTrainedModel) -> nn.Embedding:
    """The embedding of tokens."""
    embedding: nn.Embedding = model.get_input_embeddings()  # type: ignore[assignment]
    return embedding


def vocabulary_parameters(model: PreTrainedModel) -> tuple[str, ...]:
    """All names of the parameters that have a row for each token: those of embedding and head."""
    modules = (input_embedding(model), output_embedding(model))
    rows = {id(parameter) for module in modules if module is not None for parameter in module.parameters()}
    return tuple(name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in rows)


def parameter_names(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """All names of every parameter; a tied one has several."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def tied_groups(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """The names of every parameter that has several, such as embedding and head of a tied model."""
    return tuple(tuple(names) for names in parameter_names(model).values() if len(names) > 1)


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that a checkpoint holds, by name, such as Gemma 4's factor of each layer; most have none."""
    saved = model.state_dict(keep_vars=True)
    return {name: saved[name] for name, _ in model.named_buffers(remove_duplicate=False) if name in saved}


def modules_with_parameters(model: nn.Module, part: str = "") -> list[str]:
    """Full names of the modules of a part (by default of the model) that have parameters of their own."""
    modules = model.get_submodule(part).named_modules(prefix=part)
    return [name for name, module in modules if next(module.parameters(recurse=False), None) is not None]


def assign(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a parameter or buffer in its place, given its full name."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, value)


def decoder_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The decoder layers by name, in order: the modules that transformers keeps whole when it spreads a model.

    Empty if the architecture names no such classes (``_no_split_modules``).
    """
    classes, others = set(model._no_split_modules or ()), other_modalities(model)
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        # FSDP2 makes a subclass with another name of every class that it shards
        is_kept_whole = not classes.isdisjoint(cls.__name__ for cls in type(module).__mro__)
        if is_kept_whole and not f"{name}.".startswith((*others, *(f"{layer}." for layer in layers))):
            layers[name] = module  # and not those inside it
    return layers


def has_router_loss(model: PreTrainedModel) -> bool:
    """Whether transformers computes a loss for this model that balances its experts."""
    takes = inspect.signature(type(model).forward).parameters
    return "output_router_logits" in takes and hasattr(model.config.get_text_config(), "router_aux_loss_coef")


def decoder_obstacle(model_type: str) -> str | None:
    """Why models of this type are no decoders of text alone, or ``None`` if they are, as transformers' mappings say."""
    from transformers.models.auto import modeling_auto as auto

    if model_type in _OTHER_KINDS:
        return _OTHER_KINDS[model_type]
    if model_type in auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES or model_type.startswith("musicgen"):
        return _SPEECH
    if model_type in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return _ENCODER_DECODER
    return _BIDIRECTIONAL if model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module is in its own mode again, also after an exception."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True)
class DecoderParts:
    """The parts of a decoder that are loaded to a device one at a time.

    Attributes:
        layers: Names of the decoder layers, in order.
        outer: Names of the modules outside the layers that have parameters of their own: embedding, final norm, head;
            without those of other modalities.
    """

    layers: tuple[str, ...]
    outer: tuple[str, ...]


def decoder_parts(model: PreTrainedModel) -> DecoderParts:
    """Cut a decoder into its layers and the modules outside them; a model on the meta device is enough.

    Raises:
        ActError: If it has no layers that transformers names.
    """
    layers = tuple(decoder_layers(model))
    if not layers:
        problem = "must have decoder layers that transformers names (_no_split_modules)"
        hint = "Choose profile.placement: resident for this architecture."
        raise ActError(ConfigIssue("profile.placement", type(model).__name__, problem, hint))
    prefixes = tuple(f"{layer}." for layer in layers)
    prefixes = (*prefixes, *other_modalities(model))
    outer = (name for name in modules_with_parameters(model) if not f"{name}.".startswith(prefixes))
    return DecoderParts(layers, tuple(outer))


def part_sizes(model: PreTrainedModel) -> dict[str, int]:
    """Number of parameter elements of every part; a tied matrix counts in each part that has it."""
    parts = decoder_parts(model)
    return {
        name: sum(parameter.numel() for parameter in model.get_submodule(name).parameters())
        for name in (*parts.outer, *parts.layers)
    }


@dataclass(frozen=True)
class DecoderSizes:
    """The sizes of a decoder, as its config gives them.

    Attributes:
        layers: Number of decoder layers.
        hidden: Features of a hidden state.
        heads: Attention heads for queries.
        kv_heads: Attention heads for keys and values.
        head_size: Features of an attention head.
        intermediate: Features inside the feed-forward network.
        vocabulary: Entries of the vocabulary.
        tied: Whether embedding and head are one matrix.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: PretrainedConfig) -> DecoderSizes:
        """Read a config; of several modalities its text model's sizes, of layers that differ the largest."""
        text = config.get_text_config()
        layers = getattr(text, "per_layer_config", None) or [text]  # which older transformers do not have

        def largest(name: str, default: int) -> int:
            return max(int(getattr(layer, name, None) or default) for layer in layers)

        hidden = int(text.hidden_size)
        heads = largest("num_attention_heads", 1)
        return cls(
            layers=int(text.num_hidden_layers),
            hidden=hidden,
            heads=heads,
            kv_heads=largest("num_key_value_heads", heads),
            head_size=largest("head_dim", hidden // heads),
            intermediate=largest("intermediate_size", 4 * hidden),
            vocabulary=int(text.vocab_size),
            tied=bool(getattr(text, "tie_word_embeddings", False)),
        )

    @property
    def embedding(self) -> int:
        """Elements of the embedding, and as many of the head."""
        return self.vocabulary * self.hidden

    @property
    def peak_features(self) -> int:
        """Features of a token that a model computes with at once: its logits, or those between two hidden states.

        >>> from transformers import LlamaConfig
        >>> DecoderSizes.of(LlamaConfig(hidden_size=64, intermediate_size=176, vocab_size=32000)).peak_features
        32000
        """
        return max(self.vocabulary, 5 * self.intermediate + 8 * self.hidden)
