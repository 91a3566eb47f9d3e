"""Rules that were tried and are not in the package, beside those they compete with, on the study's laboratories.

    python -m benchmarks.rules run --part rules --minutes 55       # the arguments of benchmarks.study
    python -m benchmarks.rules tables

Transfers alone, chosen and measured as the study does it; rows and tables are in ``benchmarks/study/rules``. The rules
hold whole gradients of a small model in memory.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from act_lightning.channels import ChannelInventory, OwnedParameter, add_to_channels, inventory, matrix_shape
from act_lightning.checkpoints.reader import load_on_device
from act_lightning.data.batches import collate
from act_lightning.data.labels import Sample
from act_lightning.masks import random_scores, top_by_parameters
from act_lightning.profiling.channel_means import ChannelMeans
from act_lightning.profiling.gradients import each_gradient, summed_squared_gradients
from act_lightning.profiling.pair import ChunkBatch, ResidentPair
from act_lightning.scorers import Attribution, Local, Observation
from act_lightning.training.loss import answer_loss, score_answers
from act_lightning.transfer.preparation import PreparedTransfer
from benchmarks import study
from benchmarks.study import KEEP, RECOVER

Values = Mapping[str, Tensor]
"""A tensor for each parameter, of its shape, by its first name."""
PATH = [0.1, 0.3, 0.5, 0.7, 0.9]
_ROWS = 32  # samples in a batch


@dataclass(frozen=True)
class LocalPower(Local):
    """(1/|T|) Σ_{t∈T} |Δw_i · x_t + Δb_i|^power: the larger the power, the more a channel's few large changes count."""

    power: float = 2.0
    name: ClassVar[str] = "local_power"

    def values(self, observation: Observation) -> Tensor:
        """The difference of both outputs, to a power."""
        return super().values(observation) ** self.power


class WholePair:
    """A pair of small models in memory, with samples of the abilities ``recover`` and ``keep``.

    Args:
        target: The model to be improved; a copy is changed.
        source: Its sibling.
        samples: By ability.
    """

    def __init__(
        self, target: PreTrainedModel, source: PreTrainedModel, samples: Mapping[str, Sequence[Sample]]
    ) -> None:
        self.channels: ChannelInventory = inventory(target)
        self.sizes = self.channels.sizes()
        self._model, self._samples = copy.deepcopy(target).eval(), samples
        self._source = source.eval()
        self.target = {name: values.detach().clone() for name, values in target.named_parameters()}
        self.source = {name: values.detach() for name, values in source.named_parameters()}
        self.change = {name: self.source[name] - values for name, values in self.target.items()}
        self.gradient = cache(self._gradient)

    def _gradient(self, ability: str, alpha: float) -> Values:
        """The gradient of the mean −log p of an ability's answer tokens at θ_trg + α (θ_abl − θ_trg)."""
        samples, tokens = self._samples[ability], 0
        gradient = {name: torch.zeros_like(values) for name, values in self.target.items()}

        def add(name: str, values: Tensor) -> None:
            gradient[name] += values

        with self._moved(dict.fromkeys(self.change, torch.tensor(alpha))):
            with each_gradient(self._model, add):
                for start in range(0, len(samples), _ROWS):
                    loss, count = answer_loss(self._model, collate(samples[start : start + _ROWS], 0))
                    loss.backward()
                    tokens += count
        return {name: values / tokens for name, values in gradient.items()}

    def fisher(self, ability: str) -> Values:
        """Squares of the gradients of each sample at θ_trg, summed."""
        return summed_squared_gradients(self._model, self._samples[ability])

    def density(self, values: Values) -> Tensor:
        """The mean over the elements that each channel owns, float64 ``[channels]``."""
        sums = torch.zeros(self.channels.total, dtype=torch.float64)
        for module, span in self.channels.spans():
            for owned in module.owned:
                shape = self.channels.shapes[owned.name]
                add_to_channels(sums[span], owned, shape, 0, values[owned.name].reshape(matrix_shape(shape)))
        return sums / self.sizes

    def attribution(self, alpha: float = 0.5) -> Tensor:
        """The package's attribution, float64 ``[channels]``."""
        gradient = self.gradient(RECOVER, alpha)
        return -self.density({name: values * self.change[name] for name, values in gradient.items()})

    def magnitude(self, ability: str, alpha: float, factor: Values | None = None) -> Tensor:
        """Mean |∂L/∂θ|, or mean |factor · ∂L/∂θ|, float64 ``[channels]``."""
        gradient = self.gradient(ability, alpha)
        products = {name: values if factor is None else values * factor[name] for name, values in gradient.items()}
        return self.density({name: values.abs() for name, values in products.items()})

    def top(self, scores: Tensor, share: float) -> Tensor:
        """The channels of the highest scores that fit into a share of the parameters, bool ``[channels]``."""
        everything = torch.ones(self.channels.total, dtype=torch.bool)
        return top_by_parameters(scores.float(), share, everything, self.channels)

    def random_patches(self, passes: int, shrunk: bool) -> Tensor:
        """Attribution estimated by forward passes alone, from models between whose halves every channel draws lots.

        For every sample and pass, each channel has the source's weights or the target's, z_i = ±1, and then the other
        way round; the estimate is the mean of z_i (L(−z) − L(z)). Of a tied matrix, a row and a column have half of an
        element each. With ``shrunk``, the estimates of a module are multiplied by the share of their mean square that
        is not the error of such a mean, which is the same for all channels.

        Returns:
            float64 ``[channels]``.
        """
        samples, tokens, noise = self._samples[RECOVER], 0, 0.0
        total = torch.zeros(self.channels.total, dtype=torch.float64)
        owners: dict[str, list[tuple[slice, OwnedParameter]]] = {}
        for module, span in self.channels.spans():
            for owned in module.owned:
                owners.setdefault(owned.name, []).append((span, owned))
        weights = torch.ones(self.channels.total, dtype=torch.float64)
        for shared in owners.values():
            for span, _ in shared:
                weights[span] = len(shared)
        for turn in range(passes):
            for number, sample in enumerate(samples):
                signs = torch.where(random_scores(self.channels.total, turn, number) < 0.5, -1.0, 1.0)
                steps = {
                    name: sum(
                        (_spread(signs[span], owned, self.channels.shapes[name]) for span, owned in shared),
                        start=torch.zeros(()),
                    )
                    / (2 * len(shared))
                    for name, shared in owners.items()
                }
                losses = []
                for side in (0.5, -0.5):
                    with self._moved({name: 0.5 + 2 * side * step for name, step in steps.items()}):
                        scores = score_answers(self._model, collate([sample], 0))
                    losses.append(float(scores.loss))
                    tokens += scores.tokens
                total += signs * (losses[1] - losses[0])
                noise += (losses[1] - losses[0]) ** 2
        estimates, error = total * weights / (tokens / 2), math.sqrt(noise) * weights / (tokens / 2)
        if shrunk:
            for _, span in self.channels.spans():
                square, own = estimates[span].square().mean(), error[span].square().mean()
                estimates[span] *= ((square - own) / square).clamp(min=0) if square > 0 else 0
        return estimates / self.sizes

    def local_energy(self) -> Tensor:
        """The scores of :class:`LocalPower`, float64 ``[channels]``."""
        samples, means = self._samples[RECOVER], ChannelMeans(self.channels, LocalPower())
        batches = (ChunkBatch(collate(samples[start : start + _ROWS], 0)) for start in range(0, len(samples), _ROWS))
        for _ in ResidentPair(self._model, {Path(): self._source}).run(batches, [(Path(), means)]):
            pass
        return means.compute().double()

    def module_effects(self, samples: int) -> Tensor:
        """How far the mean −log p falls while each module alone goes from the target's weights to the source's.

        All others are half-way. Of a tied matrix, each of its two modules moves all.

        Args:
            samples: How many samples of ``recover`` are read, twice for every module.

        Returns:
            float64 ``[channels]``, the same for all channels of a module.
        """
        effects = torch.zeros(self.channels.total, dtype=torch.float64)
        batch = collate(self._samples[RECOVER][:samples], 0)
        for module, span in self.channels.spans():
            sides = []
            for alpha in (0.0, 1.0):
                steps = dict.fromkeys(self.change, torch.tensor(0.5))
                with self._moved(steps | {owned.name: torch.tensor(alpha) for owned in module.owned}):
                    scores = score_answers(self._model, batch)
                sides.append(float(scores.loss) / scores.tokens)
            effects[span] = sides[0] - sides[1]
        return effects

    @contextmanager
    def _moved(self, steps: Values) -> Iterator[None]:
        """While active, the model lies a step along the task vector from the target."""
        try:
            with torch.no_grad():
                for name, step in steps.items():
                    self._model.get_parameter(name).copy_(self.target[name] + step * self.change[name])
            yield
        finally:
            with torch.no_grad():
                for name in steps:
                    self._model.get_parameter(name).copy_(self.target[name])


def _spread(values: Tensor, owned: OwnedParameter, shape: torch.Size) -> Tensor:
    """The value of its channel for every element of a parameter."""
    height, width = matrix_shape(shape)
    if owned.dim == 0:
        return values.repeat_interleave(height // len(values)).unsqueeze(1).expand(height, width).reshape(shape)
    return values.view(owned.groups, -1).repeat_interleave(height // owned.groups, 0).reshape(shape)


def behind(scores: Tensor, last: Tensor) -> Tensor:
    """The same order, but with the channels in ``last`` behind all others."""
    return torch.where(last, scores - (scores.max() - scores.min() + 1), scores)


def ranks(scores: Tensor) -> Tensor:
    """Each channel's place, from 0 for the lowest score to 1."""
    return scores.argsort(stable=True).argsort().double() / (len(scores) - 1)


def led(pair: WholePair, share: float = 0.3) -> Tensor:
    """|w ∂L/∂w| in the source, of channels that are in its top and the target's, and not in that of what is to be kept.

    After LED (https://arxiv.org/abs/2502.16770), by channels; the base is not at hand, the target stands for it.
    """
    importance = pair.magnitude(RECOVER, 1.0, pair.source)
    both = pair.top(importance, share) & pair.top(pair.magnitude(RECOVER, 0.0, pair.target), share)
    return behind(importance, ~both | pair.top(pair.magnitude(KEEP, 0.0, pair.target), share))


def reason_any(pair: WholePair) -> Tensor:
    """The rank of |∂L/∂w| of the ability in the source, less that of what is to be kept in the target."""
    return ranks(pair.magnitude(RECOVER, 1.0)) - ranks(pair.magnitude(KEEP, 0.0))


def disjoint(pair: WholePair, share: float = 0.3) -> Tensor:
    """Attribution, with the top |w ∂L/∂w| of what is to be kept behind all others."""
    return behind(pair.attribution(), pair.top(pair.magnitude(KEEP, 0.0, pair.target), share))


def over_fisher(pair: WholePair) -> Tensor:
    """Attribution, where positive, over the root of the Fisher information of what is to be kept."""
    scores, fisher = pair.attribution(), pair.density(pair.fisher(KEEP)).sqrt()
    return torch.where(scores > 0, scores / fisher.clamp(min=float(fisher[fisher > 0].min())), scores)


def patched_modules(pair: WholePair) -> Tensor:
    """Each module's own effect on the loss, shared out over its channels by :meth:`WholePair.local_energy`."""
    energy, effects = pair.local_energy(), pair.module_effects(120).clamp(min=0)
    for _, span in pair.channels.spans():
        energy[span] /= energy[span].sum().clamp(min=torch.finfo(energy.dtype).tiny)
    return effects * energy / pair.sizes


@cache
def _pair(bench: study.Bench, samples: int) -> WholePair:
    source = load_on_device(bench.pair.source, torch.float32, torch.device("cpu"))
    tokenized = bench.training_data(samples).tokenized
    return WholePair(bench.model, source, {role: tokenized[role].samples for role in (KEEP, RECOVER)})


@cache
def _scores(rule: Callable[[WholePair], Tensor], bench: study.Bench, samples: int) -> Tensor:
    return rule(_pair(bench, samples))


def _transfer(
    rule: Callable[[WholePair], Tensor], bench: study.Bench, point: study.Point, samples: int
) -> PreparedTransfer:
    """The transfer of a point by the mask of a rule."""
    mask = _pair(bench, samples).top(_scores(rule, bench, samples), point.ratio)
    selected = bench.select("random", point.ratio, samples)
    sources = [replace(source, masks={RECOVER: mask}, scale=point.scale) for source in selected.sources]
    return replace(selected, sources=sources, scale=point.scale)


RULES: dict[str, study.Method] = {
    "local, cubes": study.Method(LocalPower(power=3.0)),
    "attribution, path": study.Method(Attribution(alpha=PATH)),
    "attribution, keep, path": study.Method(Attribution(alpha=PATH, keep=[KEEP], penalty=4.0)),
    **{
        name: study.Method(prepare=partial(_transfer, rule))
        for name, rule in {
            "LED": led,
            "ReasonAny": reason_any,
            "attribution, disjoint": disjoint,
            "attribution / Fisher": over_fisher,
            "patched modules": patched_modules,
            "random patches": partial(WholePair.random_patches, passes=16, shrunk=True),
        }.items()
    },
}
"""Every rule by its name in the tables."""


RIVALS = ("task arithmetic", "random", "ACT", "local", "weight_rms", "attribution", "attribution, keep")
PART = replace(study.PARTS["tiny"], methods=(*RIVALS, *RULES), tuned_methods=(), tuned_samples=())


def main() -> None:
    """The command line of the study, with these rules and a part for them."""
    study.METHODS.update(RULES)
    study.PARTS, study.FOLDER = {"rules": PART}, study.FOLDER / "rules"
    study.main()


if __name__ == "__main__":
    main()
