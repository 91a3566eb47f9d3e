"""Where the models of a pair are while they are compared."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PretrainedConfig, PreTrainedModel

from act_lightning.architecture import DecoderSizes
from act_lightning.channels import inventory
from act_lightning.checkpoints.models import load_quantized
from act_lightning.checkpoints.reader import load_on_device
from act_lightning.console import format_bytes
from act_lightning.profiling.layerwise import LayerwiseModel, LayerwisePair
from act_lightning.profiling.measurement import Target
from act_lightning.profiling.memory import PairSettings, host_memory, largest_stage
from act_lightning.profiling.offload import DiskWeights, MemoryWeights, OffloadedReader, PartWeights
from act_lightning.profiling.pair import Pair, ResidentPair

_USABLE = 0.9  # of the memory that is free: the rest is left to kernels' workspaces and fragments


@contextmanager
def open_pair(
    target: Target, sources: Collection[Path], settings: PairSettings, trainer: L.Trainer
) -> Iterator[tuple[Pair, PretrainedConfig]]:
    """Load the models of a pair; afterwards, a target that was in memory is as it was.

    Yields:
        The pair, ready to read batches, and the target's config.
    """
    device, dtype, skeleton = trainer.strategy.root_device, target.dtype, target.skeleton()
    placement = settings.placement
    if placement == "auto" and settings.quantization is None:
        placement = choose_placement(target, skeleton, len(sources), settings.tokens_per_batch, trainer)
    with ExitStack() as stack:
        pair: Pair
        if settings.quantization is not None:
            assert target.folder is not None
            folders, bits = (target.folder, *sources), settings.quantization
            model, *others = (load_quantized(folder, dtype, device, bits) for folder in folders)
            pair = ResidentPair(model, dict(zip(sources, others, strict=True)), device)
        elif placement == "resident":
            model = stack.enter_context(target.ready(device))
            pair = ResidentPair(model, {folder: load_on_device(folder, dtype, device) for folder in sources}, device)
        elif placement == "offload":
            host = torch.device("cpu")
            model = stack.enter_context(target.ready(host if target.model is None else target.model.device))
            models = [model, *(load_on_device(folder, dtype, host) for folder in sources)]
            for loaded in models[target.model is not None :] if device.type == "cuda" else ():
                for parameter in loaded.parameters():  # once, rather than each time it is copied
                    parameter.data = parameter.data.pin_memory()
            reader, *readers = (stack.enter_context(OffloadedReader(model, device).ready()) for model in models)
            pair = ResidentPair(reader, dict(zip(sources, readers, strict=True)), device)
        else:
            weights: list[PartWeights] = []
            if target.model is None:
                assert target.folder is not None
                weights.append(DiskWeights(target.folder, dtype, device))
            else:
                weights.append(MemoryWeights(stack.enter_context(target.ready(target.model.device)), device))
            weights += [DiskWeights(folder, dtype, device) for folder in sources]
            layerwise, *siblings = (stack.enter_context(LayerwiseModel(part, device)) for part in weights)
            # What stages leave holds a hidden state of each token in every model.
            size = dtype.itemsize * len(weights)
            free = host_memory_share(trainer) - sum(largest_stage(skeleton)) * size
            tokens = max(1, memory_for_states(free, device) // (DecoderSizes.of(skeleton.config).hidden * size))
            named = dict(zip(sources, siblings, strict=True))
            pair = LayerwisePair(layerwise, named, device, tokens, trainer.is_global_zero)
        yield pair, skeleton.config


def host_memory_share(trainer: L.Trainer) -> int:
    """Bytes of this machine's memory that are free for each of the Trainer's processes on it."""
    return host_memory() // max(1, trainer.world_size // trainer.num_nodes)


def memory_for_states(free: int, device: torch.device) -> int:
    """Bytes of free memory to plan for hidden states: half; a GPU's are pinned, up to the next power of two."""
    return free // (4 if device.type == "cuda" else 2)


def choose_placement(target: Target, skeleton: PreTrainedModel, sources: int, tokens: int, trainer: L.Trainer) -> str:
    """``resident`` where the whole pair and the outputs of a batch fit, else ``layerwise``; and say so."""
    device, size = trainer.strategy.root_device, target.dtype.itemsize
    models = sources + (target.model is None or target.model.device.type != device.type)
    weights = sum(parameter.numel() for parameter in skeleton.parameters()) * size * models
    outputs = tokens * (inventory(skeleton).total + DecoderSizes.of(skeleton.config).peak_features) * size
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = int(torch.cuda.mem_get_info(device)[0]) + unused
    else:
        free = host_memory_share(trainer)
    placement = "resident" if weights + outputs <= _USABLE * free else "layerwise"
    sizes = (
        f"{format_bytes(weights)} of weights and up to {format_bytes(outputs)} of outputs, {format_bytes(free)} free"
    )
    rank_zero_info(f"profile.placement: {placement} ({sizes})")
    return placement
