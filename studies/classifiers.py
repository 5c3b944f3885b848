"""Trains the classifiers whose weights are shipped, on the CPU, with one thread and a fixed seed.

python -m studies.classifiers

They are those of the labelled images that every installation has. The same machine makes the same
weights again; another one makes others, which is why they are shipped. To be run after a change of
``RECIPE`` in ``bench/features/classifier.py``, or of what the images are.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.features.build import Pixels, labelled_images
from bench.features.cache import store
from bench.features.classifier import WEIGHTS, shipped, weights_of
from datasets import Empirical, Task
from datasets.colored_digits import GaussianToColoredDigits
from datasets.patches import GaussianToPatches
from datasets.scikit_learn import GaussianToDigits

TASKS: tuple[Task, ...] = (
    GaussianToDigits(),
    GaussianToColoredDigits(),
    GaussianToColoredDigits(size=28),
    GaussianToPatches(),
)
"""One task of each set of labelled images."""


def publish(task: Task) -> tuple[str, Path]:
    """Trains the classifier of a task and writes its weights: the name of its images, the file."""
    labelled, target = task.labelled(), task.target()
    if labelled is None or labelled.name is None or not isinstance(target, Empirical):
        raise ValueError(f"{task.name} has no labelled images that are always the same")
    pixels = Pixels.of(target.train, target.shape, target.normalisation)
    path = WEIGHTS / f"{labelled.name}.safetensors"
    store(path, weights_of(*labelled_images(labelled, pixels), len(labelled.names)))
    return labelled.name, path


def main(argv: Sequence[str] | None = None) -> None:
    """Writes all files, and prints a line of each: hash, accuracy on the test images, size."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    WEIGHTS.mkdir(exist_ok=True)
    for task in TASKS:
        name, path = publish(task)
        labelled = task.labelled()
        assert labelled is not None
        found = shipped(name, task.shape, len(labelled.names))
        assert found is not None
        size = path.stat().st_size / 1000
        print(f"{name}: hash {found.hash}, accuracy {found.accuracy:.4f}, {size:.0f} kB")


if __name__ == "__main__":
    main()
