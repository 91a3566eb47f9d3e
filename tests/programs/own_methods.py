"""Merging methods as a user writes them: one that works, and two whose change has the wrong form."""

from dataclasses import dataclass

from act_lightning.merging import MergingMethod


@dataclass(frozen=True)
class First(MergingMethod):
    share: float = 1.0

    def merge(self, vectors, place):
        return vectors[0].restricted() * self.share


class Short(First):
    def merge(self, vectors, place):
        return vectors[0].delta[:1]


class Wide(First):
    def merge(self, vectors, place):
        return vectors[0].delta.double()
