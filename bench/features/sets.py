"""The features of every set of images of a cell."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from torch import Tensor


@dataclass(frozen=True)
class FeatureSets:
    """The images of an evaluation seen through one feature map, row by row in the same order."""

    samples: Tensor  # (n, F)
    target: Tensor  # (n, F)
    second_target: Tensor  # (n, F)
    source: Tensor | None = None  # (n, F) where the source is images too
    train: Tensor | None = None  # (N, F) some training images, in random order
    wanted: tuple[int, ...] = ()  # of class probabilities: the columns of the target's classes

    def seen(self, look: Callable[[Tensor], Tensor], wanted: tuple[int, ...] = ()) -> "FeatureSets":
        """These sets through another map: ``look`` of each set there is."""
        return FeatureSets(
            *(look(self.samples), look(self.target), look(self.second_target)),
            source=None if self.source is None else look(self.source),
            train=None if self.train is None else look(self.train),
            wanted=wanted,
        )

    def part(self, lines: Tensor, first: Tensor, second: Tensor, train: Tensor | None) -> Self:
        """Some rows of every set: ``lines`` of the samples and the source, each index (k,).

        ``first`` and ``second`` are of the two target sets. ``train`` brings the training images
        into another order, a permutation of at least as many numbers.
        """
        rows = self.train
        if rows is not None and train is not None:
            rows = rows[train[train < len(rows)]]
        return dataclasses.replace(
            self,
            samples=self.samples[lines],
            target=self.target[first],
            second_target=self.second_target[second],
            source=None if self.source is None else self.source[lines],
            train=rows,
        )
