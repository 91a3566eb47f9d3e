"""The LightningDataModule: abilities to train, validate and profile on, and evaluation sets."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning as L
from torch.utils.data import ConcatDataset
from transformers import PretrainedConfig

from act_lightning.data.batches import MAX_PADDING, Batch, should_pack, token_budget_batches
from act_lightning.data.cache import lengths
from act_lightning.data.loaders import (
    MicroBatch,
    MicroBatchLoader,
    MicroBatchSampler,
    TrainingLoader,
    collate_micro_batch,
    join_micro_batches,
    shard_evenly,
)
from act_lightning.data.loading import load_from_hub, source_kind
from act_lightning.data.section import EVALUATION_STAGES, DataSection, no_evaluations
from act_lightning.data.tasks import collate_prompts
from act_lightning.errors import ActError, raise_if_any

_MAX_DESCRIBED_SAMPLES, _MAX_DESCRIBED_CHARACTERS = 3, 60


class AbilityDataModule(DataSection, L.LightningDataModule):
    """Abilities as labeled token ids, and evaluation sets as prompts.

    Args:
        abilities: Data sets by name; ``null`` removes a name that an earlier config gave.
        train: Abilities to train on; by default all.
        validation: Abilities to validate on, or one share held out of each that is trained on: its last rows, at least
            one, which are then neither trained nor profiled on.
        evaluations: Evaluation sets by name; ``null`` removes a name that an earlier config gave.
        batch_size: Samples in a micro-batch of training.
        shuffle: Whether training shuffles its samples in every epoch.
        template: ``chat`` (the target's own), a shipped name such as ``wizardmath``, text that contains ``{prompt}``,
            or a chat template in a ``.jinja`` file.
        max_length: Longer sequences are cut at the end.
        target: Folder or hub id of the model whose tokenizer is used.
        revision: Revision of that hub id.
        packing: Whether the samples of a micro-batch share one row, one after the other, or have padded rows of their
            own. ``auto`` packs in training, where their lengths differ, if the model keeps them apart, and pads where
            batches hold samples of similar length, which wastes less than 2 %: in validation and profiling; and in
            training of a model that cannot read packed rows, whose micro-batches are then composed by length.
        num_proc: Processes that turn rows into tokens; by default one for each core, up to 16.
        cache_dir: Folder of the tokenized sets, which later runs reuse; by default
            ``$ACT_LIGHTNING_CACHE/data`` or ``~/.cache/act_lightning/data``. It may be deleted at any time.
        tokens_per_batch: Rows × length, with what is to be generated, of a batch of validation and evaluation, which
            need less memory than training; by default ``batch_size`` × ``max_length``. The keys and values of answers
            that are generated together may take 256 MiB in any case.
    """

    def prepare_data(self) -> None:
        """Download tokenizer and hub data sets, and tokenize the abilities, on one process of each node."""
        stage = self.trainer.state.fn if self.trainer else None
        raise_if_any(self.issues(stage))
        _ = self.tokenizer
        for name, settings in self.evaluations.items():
            if source_kind(settings.path) == "hub":
                load_from_hub(settings, f"data.evaluations.{name}")
        if stage not in EVALUATION_STAGES:
            _ = self._splits

    def setup(self, stage: str | None = None) -> None:
        """Read what a stage needs, once.

        Raises:
            ActError: With all issues of the settings, or else with those of all data sets.
        """
        if stage in (None, "fit", "validate"):
            raise_if_any(self.issues(stage))
            _ = self.packing is not True or should_pack(True, self._reader_config, by_length=False)
        self.read(stage)

    def train_dataloader(self) -> TrainingLoader:
        """This process's micro-batches of the samples of all abilities in ``train``."""
        sets = [self.tokenized[name].samples for name in self.train]
        samples: Any = ConcatDataset(sets)  # type: ignore[arg-type]  # sequences are data sets
        packed = self.batch_size > 1 and self._should_pack(by_length=False)
        by_length = self.batch_size > 1 and not packed
        all_lengths = [length for members in sets for length in lengths(members)] if by_length else None
        seed, shard = int(os.environ.get("PL_GLOBAL_SEED", 0)), self._rank_and_world_size
        sampler = MicroBatchSampler(len(samples), self.batch_size, self.shuffle, seed, *shard, lengths=all_lengths)
        return TrainingLoader(samples, sampler, self._pad_id, packed, self.trainer)

    def describe_samples(self, micro_batch: int) -> str:
        """Ability, number and beginning of the samples in a micro-batch of training, three of them at most."""
        loader = self.trainer.train_dataloader if self.trainer else None
        if not isinstance(loader, TrainingLoader):
            return ""
        numbered = [(name, number) for name in self.train for number in range(len(self.tokenized[name].samples))]
        members = [numbered[index] for index in loader.samples_in(micro_batch)]
        descriptions = []
        for name, number in members[:_MAX_DESCRIBED_SAMPLES]:
            ids = self.tokenized[name].samples[number].input_ids
            text = " ".join(str(self.tokenizer.decode(ids, skip_special_tokens=True)).split())
            descriptions.append(f"sample {number} of {name}, {text[:_MAX_DESCRIBED_CHARACTERS]!r}")
        if len(members) > _MAX_DESCRIBED_SAMPLES:
            descriptions.append(f"{len(members) - _MAX_DESCRIBED_SAMPLES} more")
        return "; ".join(descriptions)

    def val_dataloader(self) -> list[MicroBatchLoader[Batch]]:
        """One loader for each validation set, in batches of as many tokens as a micro-batch of training may have."""
        loaders = []
        for name in self.validation_names:
            samples, packed = self.held_out[name].samples, self._should_pack(by_length=True)
            micro_batches = self._shard_by_tokens(lengths(samples), MAX_PADDING, packed)
            collate = partial(collate_micro_batch, samples, self._pad_id, packed)
            loaders.append(MicroBatchLoader(micro_batches, collate))
        if not loaders:  # Lightning warns, but this is intended
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        return loaders

    def test_dataloader(self) -> list[MicroBatchLoader[dict[str, Any]]]:
        """One loader for each evaluation set, in batches bounded by their tokens after generation.

        A module that declares to divide them gets many such batches as one.
        """
        if not self.evaluations:
            raise ActError(no_evaluations("must hold a set to test or predict on"))
        # What the model module declares: a generator of its own, such as vLLM, takes a set whole.
        module = getattr(self.trainer, "lightning_module", None)
        takes_whole_sets = getattr(module, "answers_whole_sets", False)
        divides_batches = getattr(module, "divides_batches", False)
        loaders = []
        for name, prompts in self.prompts.items():
            if takes_whole_sets:
                micro_batches = [MicroBatch(tuple(range(len(prompts))))]
            else:
                max_new_tokens = self.evaluations[name].max_new_tokens
                micro_batches = self._shard_by_tokens([len(prompt.input_ids) + max_new_tokens for prompt in prompts])
                micro_batches = join_micro_batches(micro_batches) if divides_batches else micro_batches
            loaders.append(MicroBatchLoader(micro_batches, partial(collate_prompts, prompts, self._pad_id)))
        return loaders

    def predict_dataloader(self) -> list[MicroBatchLoader[dict[str, Any]]]:
        """The same loaders as for testing."""
        return self.test_dataloader()

    def _shard_by_tokens(
        self, lengths: Sequence[int], max_padding: float = 1.0, packed: bool = False
    ) -> list[MicroBatch]:
        batches = token_budget_batches(lengths, self.evaluation_tokens, max_padding, packed)
        return shard_evenly(batches, *self._rank_and_world_size)

    def _should_pack(self, by_length: bool) -> bool:
        """Whether samples are packed: ``auto`` only if the LightningModule declares that it reads packed rows."""
        module = getattr(self.trainer, "lightning_module", None)
        allowed = self.packing is True or getattr(module, "reads_packed_rows", False)
        return allowed and should_pack(self.packing, self._reader_config, by_length)

    @property
    def _reader_config(self) -> PretrainedConfig:
        """The target's config with the attention implementation that the LightningModule requests."""
        attention = getattr(getattr(self.trainer, "lightning_module", None), "attention", "auto")
        config = copy.deepcopy(self._config)
        if attention != "auto":
            config._attn_implementation = attention
        return config

    @property
    def _rank_and_world_size(self) -> tuple[int, int]:
        """Of the processes that share the data."""
        share = (self.trainer and self.trainer.distributed_sampler_kwargs) or {"rank": 0, "num_replicas": 1}
        return share["rank"], share["num_replicas"]

    @property
    def _pad_id(self) -> int:
        """A token that the embedding has a row for, and that no mask lets through."""
        ids, rows = (
            (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id),
            self._config.get_text_config().vocab_size,
        )
        return next((token for token in ids if token is not None and token < rows), 0)
