"""The LightningModule that wraps the merged model: full-parameter fine-tuning on answers, evaluation, prediction."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer
from transformers import PreTrainedModel

from act_lightning.architecture import has_router_loss
from act_lightning.checkpoints.models import load_model, locate, meta_model
from act_lightning.checkpoints.reader import load_on_device
from act_lightning.checkpoints.weight_files import file_sha256, identify, identify_module, read_headers
from act_lightning.data.batches import batch_to_device
from act_lightning.data.datamodule import AbilityDataModule
from act_lightning.defaults import VLLM
from act_lightning.errors import ActError, ConfigIssue, raise_if_any
from act_lightning.evaluation.evaluator import Evaluator, publish
from act_lightning.evaluation.generation import (
    Generator,
    VLLMGenerator,
    generate_answers,
)
from act_lightning.evaluation.results import EvaluatedModel, results_for_logger
from act_lightning.profiling.channel_means import float64_device
from act_lightning.sections import ModelSection, fsdp1_issues
from act_lightning.training.attention_compile import (
    compile_layers,
    set_attention,
    training_dtype,
)
from act_lightning.training.checkpoint_io import resumed_settings_issues
from act_lightning.training.lightning_compat import grad_scaler
from act_lightning.training.loss import answer_loss, score_answers
from act_lightning.training.optimizers import (
    are_finite,
    make_optimizer,
    make_scheduler,
    may_fuse,
    sharding_issues,
)
from act_lightning.training.sharding import (
    averaging_issues,
    fsdp1_precision,
    gathering_policy,
    is_sharded,
    load_for_fsdp1,
    load_for_fsdp2,
)
from act_lightning.training.validation import (
    KEEP_ACCURACY,
    RECOVER_ACCURACY,
    WITHIN_KEEP,
    Validation,
    validation_roles,
    within_keep,
)

_SETTINGS = "act_lightning settings"  # a key of checkpoints
_SUM_SCALE = 2.0**-12  # keeps summed gradients near 1, for float16; a power of two, so exact


class _LoadedModel(L.LightningModule):
    """What :class:`AbilityTransferModule` holds besides its settings."""

    def __init__(self) -> None:
        super().__init__()
        self.model: PreTrainedModel | None = None
        self.keep_floor: float | None = None
        self._vllm: VLLMGenerator | None = None
        self._tokens, self._losses = 0, dict[int, Tensor]()  # of micro-batches since the last update


class AbilityTransferModule(ModelSection, _LoadedModel):
    """A causal language model and its fine-tuning (paper §4.4, https://arxiv.org/abs/2601.09398).

    The gradient of an update is the mean over the answer tokens of all its micro-batches, on all processes, however
    the samples are split: every micro-batch adds a sum, which is divided once, before the optimizer's step.

    Args:
        target: The model to improve: a folder, a hub id, ``lab:generalist`` or ``lab:specialist``.
        revision: Commit, branch or tag of a hub id.
        dtype: Precision of profiling and merging; ``auto``: as the target is stored. Training weights follow
            ``trainer.precision``.
        export_dtype: Precision of exported weights; ``auto``: as the target is stored.
        learning_rate: Learning rate of an optimizer without an ``lr`` of its own.
        optimizer: ``adam``, ``adamw``, or ``{class_path, init_args}`` of any optimizer of torch or bitsandbytes.
        lr_scheduler: ``{class_path, init_args}`` of a schedule, stepped once an update; none by default. A required
            ``total_steps`` defaults to the updates of the run.
        gradient_checkpointing: Recompute activations in the backward pass, to save memory.
        router_aux_loss_coef: What the loss that balances a mixture's experts counts, as transformers computes it for
            each micro-batch; by default nothing.
        generator: What generates in ``test`` and ``predict``: ``transformers``, or ``vllm``, which reads the target
            from disk in ``dtype`` and spreads it over devices itself.
        generator_args: Arguments of ``vllm.LLM``, such as ``{tensor_parallel_size: 8, gpu_memory_utilization: 0.9}``.
        attention: Implementation of attention in training and evaluation: ``auto`` (transformers' choice), ``sdpa``,
            ``eager``, ``flex_attention``, ``flash_attention_2`` and so on. All of them keep packed samples apart.
        compile: Whether decoder layers are compiled, or arguments of ``torch.compile``.

    Attributes:
        model: The model, from ``configure_model`` on.
        reads_packed_rows: Tells a data module that batches may be packed: several samples in one row, whose
            ``position_ids`` restart, without an attention mask.
        answers_whole_sets: Tells a data module that a batch may hold all rows of an evaluation set.
        divides_batches: Tells a data module that an evaluation batch may hold many times its ``tokens_per_batch``.
        keep_floor: Least token accuracy of keep for ``val_recover_within_keep``, set by ``BestRecovery``.
        weights_unmodified: Whether the model holds the weights of its checkpoint: it is loaded, and was never trained.
    """

    _evaluator: Evaluator
    _validation: Validation
    reads_packed_rows = True
    weights_unmodified = False

    def setup(self, stage: str) -> None:
        """Ignore Lightning's warning that this module moves batches, and not the data module."""
        warnings.filterwarnings("ignore", "You have overridden `transfer_batch_to_device` in `LightningModule` but")

    def configure_model(self) -> None:
        """Load the target, once, in the precision of training; or start vLLM in its place."""
        if self.model is not None or self._vllm is not None:
            return
        raise_if_any(averaging_issues(self.trainer))
        folder = locate(self.target, self.revision)
        read_headers(folder, "model.target")
        if self.generator == VLLM and self.trainer.state.fn in (TrainerFn.TESTING, TrainerFn.PREDICTING):
            if self.trainer.world_size != 1:
                problem = "must be 1 if model.generator is vllm, which spreads the model over devices itself"
                hint = "Write devices: 1, and model.generator_args: {tensor_parallel_size: 8}, say."
                raise ActError(ConfigIssue("trainer.devices", self.trainer.world_size, problem, hint))
            bar, tokenizer = self.trainer.progress_bar_callback is not None, self._evaluation_data.tokenizer
            with torch.device("cpu"):  # the engine chooses devices itself; Lightning made its own the default
                self._vllm = VLLMGenerator(folder, tokenizer, self.weights_dtype, self.generator_args, bar)
            return
        if self.router_aux_loss_coef and not has_router_loss(meta_model(folder)):
            name, problem = "model.router_aux_loss_coef", "must be 0 for a model without a loss that balances experts"
            raise ActError(ConfigIssue(name, self.router_aux_loss_coef, problem, "Leave it out."))
        if self.attention != "auto":
            set_attention(meta_model(folder), self.attention)  # refused before weights are read
        self.model = self._load(folder, training_dtype(self.trainer.precision)).train()
        set_attention(self.model, self.attention)
        if self.gradient_checkpointing:
            old_name = self.model.gradient_checkpointing_enable  # in the oldest supported transformers
            getattr(self.model, "activation_checkpointing_enable", old_name)({"use_reentrant": False})
        compile_layers(self.model, self.compile_setting)
        self.weights_unmodified = True

    def _load(self, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
        """The whole model; this process's part under FSDP2; without weights under FSDP1, which asks for them later."""
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDPStrategy):
            exact = fsdp1_precision(self.trainer.precision)
            asked = None if strategy.mixed_precision == exact else strategy.mixed_precision
            accumulate = self.trainer.accumulate_grad_batches
            raise_if_any(fsdp1_issues(asked, strategy.cpu_offload.offload_params, accumulate))
            model, read_weights = load_for_fsdp1(folder, dtype, strategy.root_device)
            strategy.kwargs.setdefault("param_init_fn", read_weights)
            strategy.mixed_precision = exact
            # Reduced after every micro-batch, gradients are added up in shards, in the precision of the weights.
            strategy.block_backward_sync = nullcontext  # type: ignore[assignment, method-assign]
            return model
        if not isinstance(strategy, ModelParallelStrategy):
            if self.trainer.state.fn == TrainerFn.FITTING:
                return load_on_device(folder, dtype, strategy.root_device)
            return load_model(folder, dtype)  # which also reads mixtures of experts
        assert self.device_mesh is not None
        mesh, policy = self.device_mesh["data_parallel"], gathering_policy(self.trainer)
        return load_for_fsdp2(folder, dtype, mesh, strategy.root_device, policy)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert parameters, but keep float32 buffers as they are, like transformers.

        Lightning's ``bf16-true`` would round rotary frequencies, and with them every position.
        """
        exact = {name: buffer for name, buffer in self.named_buffers() if buffer.dtype == torch.float32}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            owner, _, leaf = name.rpartition(".")
            buffers = self.get_submodule(owner)._buffers
            converted = buffers[leaf]
            if converted is not None and converted.dtype != torch.float32:
                buffers[leaf] = buffer.to(converted.device)
        return self

    @property
    def language_model(self) -> PreTrainedModel:
        """The model, which must have been loaded."""
        if self.model is None:
            raise RuntimeError("the model is loaded in configure_model, which a Trainer calls")
        return self.model

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """All parameters, one optimizer, and the schedule if one is set."""
        if is_sharded(self.trainer):
            raise_if_any(sharding_issues(self.optimizer))
        optimizer = make_optimizer(self.optimizer, self.parameters(), self.learning_rate, fused=may_fuse(self.trainer))
        if self.lr_scheduler is None:
            return optimizer
        scheduler = make_scheduler(self.lr_scheduler, optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Reset what a fit that was interrupted between two updates has accumulated."""
        self._tokens, self._losses = 0, {}
        self.weights_unmodified = False

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ANN401
        """Find the answer tokens of labeled batches on the host, before they are copied."""
        if isinstance(batch, Mapping) and {"input_ids", "labels"} <= batch.keys():
            return batch_to_device(batch, device)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """The loss of a micro-batch: a sum over its answer tokens, not yet divided by their number."""
        factor: Tensor | float = 1.0
        if (scaler := grad_scaler(self.trainer)) is not None:  # small gradients in float16 would become zero
            factor = scaler.scale(torch.full((), self.trainer.world_size * _SUM_SCALE, device=self.device))
        coefficient = self.router_aux_loss_coef
        loss, tokens = answer_loss(self.language_model, batch, factor=factor, router_aux_loss_coef=coefficient)
        self._tokens += tokens
        self._losses[batch_idx] = loss.detach()  # read once an update: the host need not wait for the device till then
        divisor = self.trainer.accumulate_grad_batches * self.trainer.world_size  # by which Lightning and DDP divide
        return loss * (divisor * _SUM_SCALE)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the summed gradient by the number of answer tokens of the update, on all processes.

        Raises:
            ActError: On every process, if loss or gradient is NaN or infinite; no weight is changed.
        """
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        loss_sum = torch.zeros((), dtype=torch.float64, device=float64_device(self.device))
        for loss in self._losses.values():
            loss_sum += loss.to(loss_sum.device)
        # a GradScaler skips updates whose gradients overflow
        finite = are_finite(gradients if grad_scaler(self.trainer) is None else [])
        sums = torch.stack([torch.full_like(loss_sum, self._tokens), loss_sum, (~finite).to(loss_sum)])
        reduced = self.trainer.strategy.reduce(sums, reduce_op="sum")
        tokens, total_loss, nonfinite_processes = reduced.tolist()  # waits for the device, as nothing else in an update
        if nonfinite_processes or not math.isfinite(total_loss):
            raise ActError(self._nonfinite_issue(total_loss))
        self._tokens, self._losses = 0, {}
        if tokens:
            torch._foreach_mul_(gradients, 1 / (_SUM_SCALE * tokens))
            # of tensors on the device, loggers and progress bars would wait for the optimizer
            self.log("train_loss", torch.tensor(total_loss / tokens, device="cpu"), prog_bar=True)
            self.log("answer_tokens", torch.tensor(tokens, device="cpu"), prog_bar=True)

    def _nonfinite_issue(self, loss: float) -> ConfigIssue:
        setting = f"update {self.trainer.global_step + 1}"
        batch_idx = next((index for index, of_batch in self._losses.items() if not of_batch.isfinite()), None)
        if batch_idx is not None:
            setting += f", in micro-batch {batch_idx} of the epoch"
            if self._data is not None and (samples := self._data.describe_samples(batch_idx)):
                setting += f" ({samples})"
        value = f"loss {loss}" if not math.isfinite(loss) else "gradients that are NaN or infinite"
        hint = "Lower model.learning_rate, or look at the data; then resume with ckpt_path: last. Nothing was updated."
        return ConfigIssue(setting, value, "must be finite", hint)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As the Trainer says; FSDP1 clips by the norm through the wrapped model, which knows all shards."""
        root = self.trainer.strategy.model
        if gradient_clip_val and gradient_clip_algorithm != "value" and isinstance(root, FullyShardedDataParallel):
            root.clip_grad_norm_(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the settings that a fit which resumes is compared with."""
        checkpoint[_SETTINGS] = self._settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse settings that would have no effect after resuming; warn of others that differ."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            raise_if_any(resumed_settings_issues(checkpoint.get(_SETTINGS, {}), self._settings()))

    def _settings(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in ("learning_rate", "optimizer", "lr_scheduler")}
        if (data := self._data) is not None:
            micro_batches = self.trainer.accumulate_grad_batches * self.trainer.world_size
            settings["samples an update"] = data.batch_size * micro_batches
            settings["data"] = {name: data.tokenized[name].fingerprint for name in data.train}
        return settings

    def on_validation_epoch_start(self) -> None:
        """Start counting for every validation set."""
        numbered: dict[str, str | None] = {str(number): None for number in range(len(self.trainer.num_val_batches))}
        roles = numbered if self._data is None else validation_roles(self._data)
        self._validation = Validation(roles, float64_device(self.device))

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the loss and correct tokens of a batch."""
        self._validation.metrics[dataloader_idx].update(score_answers(self.language_model, batch))

    def on_validation_epoch_end(self) -> None:
        """Log loss, perplexity and token accuracy of every set, and their means, overall and by role."""
        values = self._validation.compute()
        if self.keep_floor is not None:
            values[WITHIN_KEEP] = within_keep(values[KEEP_ACCURACY], values[RECOVER_ACCURACY], self.keep_floor)
        for name, value in values.items():
            self.log(name, value, prog_bar=name == "val_loss", sync_dist=True)

    def on_test_epoch_start(self) -> None:
        """Start counting for every evaluation set."""
        self._evaluator = Evaluator(self._evaluation_data)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Generate greedily and grade by the kind of answer."""
        self._evaluator.evaluate_batch(self._generator, batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Log ``exact_match/<set>`` and so on, and mean accuracies to keep and to recover; write all results."""
        results, records = self._evaluator.gather()
        self.log_dict(results_for_logger(results), sync_dist=True)
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            publish(Path(self.trainer.default_root_dir) / "evaluations", self.evaluated_model(), results, records)

    def evaluated_model(self) -> EvaluatedModel:
        """The target, a checkpoint of a fit, or the model in memory that was trained: whichever has the weights."""
        folder, checkpoint = locate(self.target, self.revision), self.trainer.ckpt_path
        if checkpoint is not None:
            files = [path for path in sorted(Path(checkpoint).rglob("*")) if path.is_file()] or [Path(checkpoint)]
            digest = hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()
            return EvaluatedModel(f"{self.target}-{Path(checkpoint).stem}", digest)
        if self.model is None or self.weights_unmodified:
            return EvaluatedModel(self.target, identify(folder, verify=True).full_digest)
        return EvaluatedModel(self.target, identify_module(self.model, verify=True).digest)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Row, prompt, greedy prediction and reference of every row."""
        data = self._evaluation_data
        limit = data.evaluations[data.evaluation_names[dataloader_idx]].max_new_tokens
        outputs = self._generator(batch, limit)
        # not strict: a batch that only keeps processes in step has outputs, but no rows
        answered = zip(batch["rows"], batch["prompts"], outputs, batch["references"], strict=False)
        return [
            {"row": row, "prompt": prompt, "prediction": output.text, "reference": reference}
            for row, prompt, output, reference in answered
        ]

    @property
    def _generator(self) -> Generator:
        data = self._evaluation_data
        tokens = data.evaluation_tokens
        return self._vllm or partial(generate_answers, self.language_model, data.tokenizer, tokens_per_batch=tokens)

    @property
    def divides_batches(self) -> bool:
        """Whether generation may decode more rows or fewer than other processes do: none needs another's weights."""
        return type(self.trainer.strategy) in (SingleDeviceStrategy, DDPStrategy)

    @property
    def _data(self) -> AbilityDataModule | None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return data if isinstance(data, AbilityDataModule) else None

    @property
    def _evaluation_data(self) -> AbilityDataModule:
        if self._data is None:
            raise TypeError("evaluation by generation takes its sets from an AbilityDataModule")
        return self._data
