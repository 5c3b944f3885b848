"""A small classifier trained once on the labelled images of a task.

Its last hidden layer is the feature map of ``fd_classifier`` and of the other metrics that need no
download, and its classes say what an image shows. It is trained on training images alone, without
those that tuning evaluates on. Weights for the images that every installation has are shipped, in
``weights/``: a training on another machine ends elsewhere, and moves distances of features by some
percent. Of other images it is trained when it is first needed, and kept in the cache under the hash
of what it was made of: the same for every cell of a task.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.features.cache import Tensors, kept, stored, tensors_digest
from datasets.base import digest_of

# Raised when the network, its training or the file changes: others are not loaded from the cache,
# and studies/classifiers.py makes those anew that are shipped.
RECIPE = "3"
WEIGHTS = Path(__file__).with_name("weights")
WIDTHS, FEATURES = (16, 32, 64), 64
LARGEST_SIDE = 32  # larger images are averaged down to about this: classes are seen there too
LARGEST_MAP = 4  # so is what the last convolution has seen, to this: else most weights are there
STEPS, BATCH = 500, 48
NEGATIVES = 16  # images of no single class that each batch has in addition
RATE, WEIGHT_DECAY = 3e-3, 1e-4
NOISE = 0.1  # noise on training images has a standard deviation of up to this
APPLY_BATCH = 500


class Network(nn.Module):
    """Three convolutions, a hidden layer of ``FEATURES`` and the classes."""

    def __init__(self, shape: Sequence[int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        pool = max(1, min(height, width) // LARGEST_SIDE)
        layers: list[nn.Module] = [nn.AvgPool2d(pool)] if pool > 1 else []
        before = channels
        for number, after in enumerate(WIDTHS):
            stride = 1 if number == 0 else 2
            convolution = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        with torch.no_grad():
            seen = nn.Sequential(*layers).eval()(torch.zeros(1, channels, height, width)).shape
        rows, columns = (min(side, LARGEST_MAP) for side in seen[2:])
        layers += [nn.AdaptiveAvgPool2d((rows, columns)), nn.Flatten()]
        self.convolutions = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(before * rows * columns, FEATURES), nn.ReLU())
        self.last = nn.Linear(FEATURES, classes)
        self.spread = nn.Buffer(torch.ones(()))  # of the training images' features, their unit

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, F) and logits (B, K) of images (B, C, H, W) in [0, 1]."""
        features = self.hidden(self.convolutions(2 * images - 1))
        return features / self.spread, self.last(features)

    @torch.no_grad()
    def in_parts(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of any number of images."""
        features, logits = zip(*map(self, torch.split(images, APPLY_BATCH)), strict=True)
        return torch.cat(features), torch.cat(logits)


@dataclass(frozen=True)
class Classifier:
    """A trained network, the hash of its weights and the share of test images it gets right."""

    network: Network
    hash: str
    accuracy: float

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, F) and class probabilities (n, K) of images (n, C, H, W) in [0, 1]."""
        features, logits = self.network.in_parts(images)
        return features, logits.softmax(1)


def shipped(name: str | None, shape: Sequence[int], classes: int) -> Classifier | None:
    """The classifier of the labelled images of a name, if its weights come with this package.

    Raises:
        ValueError: a file that is not as it was written.
    """
    path = WEIGHTS / f"{name}.safetensors"
    return _loaded(stored(path), shape, classes) if name and path.is_file() else None


def trained(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, classes: int
) -> Classifier:
    """The classifier of images (N, C, H, W) in [0, 1]: cached, or trained now, which takes seconds.

    The accuracy, of the test images, may be low where classes are hard (CIFAR-10): read it beside
    the metrics. Labels (N,) go from 0 to ``classes`` - 1.
    """
    name = digest_of(
        [f"recipe {RECIPE} classes {classes} ", train, train_labels, test, test_labels]
    )
    weights = kept(
        f"classifier-{name[:32]}",
        lambda: weights_of(train, train_labels, test, test_labels, classes),
    )
    return _loaded(weights, train.shape[1:], classes)


def weights_of(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, classes: int
) -> Tensors:
    """Trains a classifier, as in :func:`trained`: its weights, and its ``accuracy``."""
    with _reproducible():
        network = fit(Network(train.shape[1:], classes), train, train_labels)
        right = network.in_parts(test)[1].argmax(1) == test_labels
    return {**network.state_dict(), "accuracy": right.double().mean()}


def _loaded(weights: Tensors, shape: Sequence[int], classes: int) -> Classifier:
    """The classifier of images (C, H, W) from what :func:`weights_of` returns."""
    weights = dict(weights)
    accuracy = float(weights.pop("accuracy"))
    with torch.random.fork_rng(devices=[]):
        network = Network(shape, classes)
    network.load_state_dict(weights)
    return Classifier(network.eval(), tensors_digest(weights)[:16], accuracy)


def fit(network: Network, images: Tensor, labels: Tensor) -> Network:
    """Trains by Adam at a rate that rises and falls, on images that are shifted and noisy.

    A shift by a pixel or two and some noise change no class: the features then depend on them less.
    Negatives show no single class: a network that has seen none is sure of a class in noise.
    The mean variance of a feature of the training images is 1 at the end, so that distances of
    features have the same scale for every task. Random numbers are torch's global ones.
    """
    optimiser = torch.optim.Adam(network.parameters(), RATE, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, STEPS)
    known = nn.functional.one_hot(labels, network.last.out_features).float()
    orders = [torch.randperm(len(images)) for _ in range(0, STEPS * BATCH, len(images))]
    network.train()
    for rows in torch.split(torch.cat(orders)[: STEPS * BATCH], BATCH):
        some, classes = negatives(images[rows], known[rows])
        seen, truth = torch.cat([augmented(images[rows]), some]), torch.cat([known[rows], classes])
        loss = nn.functional.cross_entropy(network(seen)[1], truth)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    network.eval()
    network.spread.copy_(network.in_parts(images)[0].var(0).mean().sqrt())
    return network


def augmented(images: Tensor) -> Tensor:
    """Each image shifted by at most an eighth of its side, with noise of its own strength."""
    n, _, height, width = images.shape
    reach = max(1, min(height, width) // 8)
    padded = nn.functional.pad(images, (reach, reach, reach, reach), mode="replicate")
    down, right = torch.randint(0, 2 * reach + 1, (2, n))
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.arange(width)
    which = torch.arange(n)[:, None, None]
    shifted = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    moved = shifted.permute(0, 3, 1, 2).contiguous()
    return moved + NOISE * torch.rand(n, 1, 1, 1) * torch.randn_like(moved)


def negatives(images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """``NEGATIVES`` images of no single class, made of a batch, and their class probabilities.

    Half are the mean of two images, of the classes of both. A quarter are images with their pixels
    in random places and a quarter normal noise, of no class: all are equally likely. The batch has
    at least 2 ``NEGATIVES`` images (n, C, H, W), with probabilities ``classes`` (n, K).
    """
    half, quarter = NEGATIVES // 2, NEGATIVES // 4
    blends = (images[:half] + images[half:NEGATIVES]) / 2
    plain = images[NEGATIVES : NEGATIVES + quarter]
    places = torch.rand(quarter, 1, *plain.shape[2:]).flatten(2).argsort(2)
    shuffled = plain.flatten(2).gather(2, places.expand(-1, plain.shape[1], -1)).view_as(plain)
    noise = (images.mean() + torch.rand(quarter, 1, 1, 1) * torch.randn_like(plain)).clamp(0, 1)
    nothing = torch.full((2 * quarter, classes.shape[1]), 1 / classes.shape[1])
    both = (classes[:half] + classes[half:NEGATIVES]) / 2
    return torch.cat([blends, shuffled, noise]), torch.cat([both, nothing])


@contextmanager
def _reproducible() -> Iterator[None]:
    """One thread and seeded random numbers: weights do not depend on the machine's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)
