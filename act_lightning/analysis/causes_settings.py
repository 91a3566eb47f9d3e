"""Section ``causes`` of a config, and the held-out samples of the causal check."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from act_lightning.data.ability_data import AbilityData
from act_lightning.errors import ConfigIssue

if TYPE_CHECKING:
    from act_lightning.data.datamodule import AbilityDataModule
    from act_lightning.data.section import DataSection


@dataclass
class CausesSettings:
    """Settings of the causal check.

    Attributes:
        samples: Held-out samples of each ability.
        held_out: Name of another entry of ``data.abilities`` that holds an ability's held-out samples, by the ability;
            by default the rows that follow those that its scores were measured on.
        repeats: Draws of each control.
    """

    samples: int = 64
    held_out: dict[str, str] = field(default_factory=dict)
    repeats: int = 3

    def issues(self, abilities: Mapping[str, AbilityData], checked: Sequence[str]) -> list[ConfigIssue]:
        """What is wrong with these settings, without reading data."""
        issues = [
            ConfigIssue(f"causes.{name}", value, "must be at least 1", "Write a number such as 64.")
            for name, value in (("samples", self.samples), ("repeats", self.repeats))
            if value < 1
        ]
        for ability, held in self.held_out.items():
            if ability not in checked or held not in abilities or held == ability:
                problem = "must name another entry of data.abilities for one of the sources' abilities"
                hint = f"These are {', '.join(checked)}."
                issues.append(ConfigIssue("causes.held_out", f"{ability}: {held}", problem, hint))
        for ability in checked:
            if ability in abilities and ability not in self.held_out and _following(abilities[ability], 1) is None:
                problem = "must leave rows that scores are not measured on, and has neither limit nor per_group"
                hint = f"Set a limit, or name other rows: causes.held_out: {{{ability}: …}}."
                issues.append(ConfigIssue(f"data.abilities.{ability}", None, problem, hint))
        return issues

    def data(self, own: DataSection, checked: Sequence[str]) -> AbilityDataModule:
        """The held-out samples of the abilities in ``checked``, from the run's ``own`` data."""
        from act_lightning.data.datamodule import AbilityDataModule  # which imports Lightning

        abilities: dict[str, AbilityData | None] = {}
        for ability in checked:
            named = self.held_out.get(ability)
            if named is None:
                abilities[ability] = _following(own.abilities[ability], self.samples)
            else:
                entry = own.abilities[named]
                abilities[ability] = replace(entry, limit=min(self.samples, entry.limit or self.samples))
        return AbilityDataModule(
            abilities,
            train=[],
            template=own.template,
            max_length=own.max_length,
            target=own.target,
            revision=own.revision,
            num_proc=own.num_proc,
            cache_dir=own.cache_dir,
        )


def _following(data: AbilityData, samples: int) -> AbilityData | None:
    """The rows that follow those of an ability, or ``None`` if it takes all."""
    if data.per_group is not None:
        groups = data.per_group
        each = math.ceil(samples / len(groups.groups)) if groups.groups else samples
        return replace(data, per_group=replace(groups, skip=groups.skip + groups.limit, limit=each), limit=samples)
    return None if data.limit is None else replace(data, skip=data.skip + data.limit, limit=samples)
