"""Where the models of a pair are while they are compared: all on the device, or brought there part by part."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PretrainedConfig, PreTrainedModel

from act_lightning.architecture import DecoderSizes
from act_lightning.channels import inventory
from act_lightning.checkpoints.models import QUANTIZATIONS, load_model, load_quantized
from act_lightning.errors import ConfigIssue
from act_lightning.profiling.layerwise import LayerwiseModel, LayerwisePair, OffloadedReader
from act_lightning.profiling.memory import free_memory, host_memory, pair_needs
from act_lightning.profiling.offload import DiskWeights, MemoryWeights, PartWeights
from act_lightning.profiling.pair import Pair, ResidentPair
from act_lightning.profiling.target import Target
from act_lightning.scorers.scorer import ActivationScorer, Scorer, WeightScorer

PLACEMENTS = ("auto", "resident", "offload", "layerwise")
_USABLE = 0.9  # of the memory that is free: the rest is left to kernels' workspaces and fragments


@dataclass(frozen=True)
class PairSettings:
    """How a pair is held.

    Attributes:
        placement: ``resident``, ``offload``, ``layerwise``, or ``auto``: resident if the device has the memory.
        quantization: ``8bit``, ``4bit`` or ``None``.
        tokens_per_batch: Bound on the tokens of a batch.
    """

    placement: str = "auto"
    quantization: str | None = None
    tokens_per_batch: int = 8192

    def issues(self) -> list[ConfigIssue]:
        """What is wrong with them, without looking at files."""
        found = []
        if self.placement not in PLACEMENTS:
            found.append(
                ConfigIssue("profile.placement", self.placement, f"must be one of {', '.join(PLACEMENTS)}", "Try auto.")
            )
        if self.quantization is None:
            return found
        if self.quantization not in QUANTIZATIONS:
            problem = f"must be null or one of {', '.join(QUANTIZATIONS)}"
            return [
                *found,
                ConfigIssue("profile.quantization", self.quantization, problem, "Leave it out for full precision."),
            ]
        if self.placement not in ("auto", "resident"):
            problem = (
                f"must be null under placement {self.placement}: quantized models are compared whole on the device"
            )
            found.append(ConfigIssue("profile.quantization", self.quantization, problem, "Choose one of the two."))
        return found

    def run_issues(self, device: torch.device, target: Target, scorer: Scorer) -> list[ConfigIssue]:
        """What keeps this run from holding the pair so.

        Args:
            device: Where the pair computes.
            target: The target.
            scorer: What is measured.
        """
        found = []
        gradients = not isinstance(scorer, (ActivationScorer, WeightScorer))
        if gradients and self.placement not in ("auto", "resident"):
            problem = f"must be auto or resident for {scorer.name}, whose backward pass needs all weights at once"
            found.append(
                ConfigIssue("profile.placement", self.placement, problem, "Leave it out, or select by activation.")
            )
        if self.quantization is None or isinstance(scorer, WeightScorer):
            return found
        if device.type != "cuda":
            problem = f"needs a GPU, and this run computes on {device.type}"
            found.append(self._quantization_issue(problem, "Leave it out, or run where there is a CUDA device."))
        if target.model is not None:
            problem = "needs a target that is loaded from its folder, and this one is in memory"
            hint = "Build the model in configure_model, and name its folder (target=...)."
            found.append(self._quantization_issue(problem, hint))
        if gradients or (isinstance(scorer, ActivationScorer) and scorer.needs_swapped):
            problem = f"cannot be had for {scorer.name}, which puts the source's weights into the target"
            found.append(self._quantization_issue(problem, "Leave it out, or select by activation."))
        return found

    def _quantization_issue(self, problem: str, hint: str) -> ConfigIssue:
        return ConfigIssue("profile.quantization", self.quantization, problem, hint)


@contextmanager
def open_pair(
    target: Target, sources: Collection[Path], settings: PairSettings, trainer: L.Trainer
) -> Iterator[tuple[Pair, PretrainedConfig]]:
    """The models, ready to be compared, and the target's config; a model of the user's is left as it was found.

    Args:
        target: The target.
        sources: The folders of its siblings.
        settings: How they are held.
        trainer: Says where they compute, and how many processes share this machine.
    """
    opening = _Opening(target, tuple(sources), trainer)
    with ExitStack() as stack:
        if settings.quantization is not None:
            pair = opening.quantized(settings.quantization)
        else:
            how = opening.choice(settings.tokens_per_batch) if settings.placement == "auto" else settings.placement
            pair = getattr(opening, how)(stack)
        yield pair, opening.skeleton.config


class _Opening:
    """Opens one pair in whichever way."""

    def __init__(self, target: Target, sources: Sequence[Path], trainer: L.Trainer) -> None:
        self.target, self.sources, self.trainer = target, sources, trainer
        self.device: torch.device = trainer.strategy.root_device
        self.skeleton = target.skeleton()
        self._sharing = max(1, trainer.world_size // trainer.num_nodes)  # processes with this machine's memory

    def choice(self, tokens: int) -> str:
        """``resident`` where the whole pair and a batch's outputs fit, else ``layerwise``; and say so."""
        target, size = self.target, self.target.dtype.itemsize
        models = len(self.sources) + (target.model is None or target.model.device.type != self.device.type)
        whole = sum(parameter.numel() for parameter in self.skeleton.parameters()) * size * models
        kept = tokens * (inventory(self.skeleton).total + DecoderSizes.of(self.skeleton.config).peak_features) * size
        room = free_memory(self.device) // (1 if self.device.type == "cuda" else self._sharing)
        chosen = "resident" if whole + kept <= _USABLE * room else "layerwise"
        told = f"{whole / 1e9:.1f} GB of weights and up to {kept / 1e9:.1f} GB of outputs, {room / 1e9:.1f} GB free"
        rank_zero_info(f"profile.placement: {chosen} ({told})")
        return chosen

    def resident(self, stack: ExitStack) -> Pair:
        """All models on the device."""
        ours = stack.enter_context(self.target.ready(self.device))
        theirs = {folder: load_model(folder, self.target.dtype, self.device) for folder in self.sources}
        return ResidentPair(ours, theirs, self.device)

    def offload(self, stack: ExitStack) -> Pair:
        """All models in the host's memory."""
        ours, theirs = self._in_memory(stack)
        readers = [stack.enter_context(OffloadedReader(one, self.device).ready()) for one in (ours, *theirs)]
        return ResidentPair(readers[0], dict(zip(self.sources, readers[1:], strict=True)), self.device)

    def layerwise(self, stack: ExitStack) -> Pair:
        """All models on disk, except a target that is in memory."""
        ours: PartWeights
        if self.target.model is None:
            ours = self._from_disk(self.target.folder)
        else:
            ours = MemoryWeights(stack.enter_context(self.target.ready(self.target.model.device)), self.device)
        weights = [ours, *(self._from_disk(folder) for folder in self.sources)]
        staged = [stack.enter_context(LayerwiseModel(one, self.device)) for one in weights]
        theirs = dict(zip(self.sources, staged[1:], strict=True))
        shows = self.trainer.is_global_zero
        return LayerwisePair(staged[0], theirs, self.device, self._tokens_together(), shows)

    def quantized(self, bits: str) -> Pair:
        """All models on the device, in fewer bits."""
        assert self.target.folder is not None
        folders = (self.target.folder, *self.sources)
        ours, *theirs = (load_quantized(folder, self.target.dtype, self.device, bits) for folder in folders)
        return ResidentPair(ours, dict(zip(self.sources, theirs, strict=True)), self.device)

    def _in_memory(self, stack: ExitStack) -> tuple[PreTrainedModel, list[PreTrainedModel]]:
        host = torch.device("cpu")
        home = host if self.target.model is None else self.target.model.device
        ours = stack.enter_context(self.target.ready(home))
        return ours, [load_model(folder, self.target.dtype, host) for folder in self.sources]

    def _from_disk(self, folder: Path | None) -> DiskWeights:
        assert folder is not None
        return DiskWeights(folder, self.target.dtype, self.device)

    def _tokens_together(self) -> int:
        """As many as half of the memory that stages leave holds hidden states for."""
        size, models = self.target.dtype.itemsize, 1 + len(self.sources)
        needs = pair_needs(self.skeleton, size, models)
        left = host_memory() // self._sharing - needs.stage - needs.next_stage
        width = DecoderSizes.of(self.skeleton.config).hidden
        return max(1, left // 2 // (width * size * models))
