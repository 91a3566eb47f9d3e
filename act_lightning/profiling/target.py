"""The target of a transfer before training: weights already in memory, or a checkpoint that names them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from act_lightning.architecture import evaluating, find_language_model, has_weights
from act_lightning.channels import ChannelInventory, inventory
from act_lightning.checkpoints.models import load_model, locate, meta_model, resolve_dtype
from act_lightning.checkpoints.reader import CheckpointReader
from act_lightning.checkpoints.weight_delta import ModelRows, Rows
from act_lightning.checkpoints.weight_files import Identity, identify, identify_module
from act_lightning.errors import ActError, ConfigIssue


@dataclass(frozen=True)
class Target:
    """Where the target's original weights are.

    Attributes:
        name: How the user named it.
        folder: Its checkpoint, if there is one.
        model: The model in memory, if it is there; otherwise the checkpoint is loaded.
        dtype: Precision in which the pair is compared.
    """

    name: str
    folder: Path | None
    model: PreTrainedModel | None
    dtype: torch.dtype

    def skeleton(self) -> PreTrainedModel:
        """The model in memory, or one without weights."""
        if self.model is not None:
            return self.model
        assert self.folder is not None
        return meta_model(self.folder)

    def inventory(self) -> ChannelInventory:
        """The target's channels."""
        return inventory(self.skeleton())

    def identity(self) -> Identity:
        """The identity of the weights that are compared."""
        if self.model is not None:
            return identify_module(self.model)
        assert self.folder is not None
        return identify(self.folder)

    def digests(self) -> list[str]:
        """Digests of these weights: in memory, and as the checkpoint that the user names."""
        in_folder = [identify(self.folder).digest] if self.folder is not None else []
        return [self.identity().digest, *in_folder]

    @contextmanager
    def rows(self) -> Iterator[Rows]:
        """The original weights, read some rows at a time."""
        if self.model is not None:
            yield ModelRows(self.model)
        else:
            assert self.folder is not None
            with CheckpointReader(self.folder) as reader:
                yield reader

    @contextmanager
    def ready(self, device: torch.device) -> Iterator[PreTrainedModel]:
        """The target on ``device`` in evaluation mode; afterwards, a model in memory is where and as it was."""
        model = self.model
        if model is None:
            assert self.folder is not None
            yield load_model(self.folder, self.dtype, device)
            return
        original_device = next(model.parameters()).device
        try:
            with evaluating(model):
                yield nn.Module.to(model, device)
        finally:
            nn.Module.to(model, original_device)


def named_checkpoint(
    module: nn.Module, target: str | None = None, revision: str | None = None
) -> tuple[str | None, str | None]:
    """The checkpoint and its revision: those given, or else those that an ``AbilityTransferModule`` names.

    That class stands above this room, so its attribute ``weights_dtype`` identifies it: a ``target`` of any other
    module may mean anything.
    """
    if target is not None:
        return target, revision
    if not hasattr(module, "weights_dtype"):
        return None, None
    return getattr(module, "target", None), getattr(module, "revision", None)


def find_target(module: nn.Module, target: str | None, revision: str | None) -> Target:
    """The target of ``module``: its weights if it has them, else the checkpoint named by ``target``.

    Args:
        module: A LightningModule. One that builds its model in ``configure_model`` has no weights yet; if it is an
            ``AbilityTransferModule``, it names its checkpoint. One whose ``weights_unmodified`` is true (as ours after
            a test, or where weights are averaged) holds the checkpoint's weights in the precision of training, so that
            the checkpoint is compared.
        target: Folder or hub id given to the profiler.
        revision: Revision of the hub id.

    Raises:
        ActError: If there are neither weights nor a name.
    """
    name, revision = named_checkpoint(module, target, revision)
    folder = None if name is None else locate(name, revision)
    model = find_language_model(module)
    if model is not None and has_weights(model) and not getattr(module, "weights_unmodified", False):
        return Target(str(name or model.name_or_path or type(model).__name__), folder, model, model.dtype)
    if folder is None:
        problem = "must hold one causal language model of transformers before fit, or the profiler must name one"
        hint = "Give ActivationDifferenceProfiler(target=...) the folder or hub id that configure_model loads."
        raise ActError(ConfigIssue("LightningModule", type(module).__name__, problem, hint))
    return Target(str(name), folder, None, resolve_dtype(getattr(module, "weights_dtype", "auto"), folder))
