"""Distributions, streams and tasks: a contract for all, and each against its reference."""

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits, make_moons, make_s_curve, make_swiss_roll
from torch import Tensor

from bench.metrics.distances import w2
from datasets import TASKS
from datasets.base import Distribution, Empirical, Normalisation, Stream
from datasets.gaussians import StandardNormal
from datasets.toy import EightGaussians, Moons, SCurve, SwissRoll

CPU = torch.device("cpu")
BUILT_IN = [name for name, task in TASKS.items() if not task.user_files]
"""Those that need files of the user's are tested in test_images.py, on files of the tests' own."""
SIDES = [(name, side) for name in BUILT_IN for side in ("source", "target")]
DRAWS: dict[str, Callable[[Distribution, int, torch.Generator], Tensor]] = {
    "sample": lambda distribution, n, rng: distribution.sample(n, rng),
    "low_variance": lambda distribution, n, rng: distribution.low_variance(n, rng),
    "held_out low_variance": lambda distribution, n, rng: distribution.held_out(
        n, rng, "low_variance"
    ),
    "held_out iid": lambda distribution, n, rng: distribution.held_out(n, rng, "iid"),
    "second_set low_variance": lambda distribution, n, rng: distribution.second_set(
        n, rng, "low_variance"
    ),
    "second_set iid": lambda distribution, n, rng: distribution.second_set(n, rng, "iid"),
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distribution_of(task: str, side: str) -> Distribution:
    return getattr(TASKS[task](), side)()


def rows_of(samples: Tensor) -> set[bytes]:
    return {row.tobytes() for row in samples.numpy()}


# A contract for every task


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(("task", "side"), SIDES)
def test_samples_are_finite_float32_of_the_dimension(task: str, side: str, draw: str) -> None:
    distribution = distribution_of(task, side)
    samples = DRAWS[draw](distribution, 37, rng())
    assert samples.shape == (37, TASKS[task].dim)
    assert math.prod(distribution.shape) == distribution.dim == TASKS[task].dim
    assert samples.dtype == torch.float32
    assert samples.device == CPU
    assert samples.isfinite().all()


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(("task", "side"), SIDES)
def test_the_generator_alone_decides(task: str, side: str, draw: str) -> None:
    distribution = distribution_of(task, side)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = DRAWS[draw](distribution, 50, rng(1))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    torch.rand(3)
    assert torch.equal(DRAWS[draw](distribution_of(task, side), 50, rng(1)), first)
    assert not torch.equal(DRAWS[draw](distribution, 50, rng(2)), first)


@pytest.mark.parametrize(("task", "side"), SIDES)
def test_two_draws_from_one_generator_differ(task: str, side: str) -> None:
    distribution, generator = distribution_of(task, side), rng()
    for draw in DRAWS.values():
        assert not torch.equal(draw(distribution, 50, generator), draw(distribution, 50, generator))


@pytest.mark.parametrize("task", BUILT_IN)
def test_source_and_target_live_in_one_space(task: str) -> None:
    built = TASKS[task]()
    assert built.source().dim == built.target().dim == built.dim
    assert built.source().shape == built.target().shape
    assert TASKS[task].name == task
    assert TASKS[task].title
    assert set(built.parameters()) == set(TASKS[task].model_fields)


@pytest.mark.parametrize("task", BUILT_IN)
def test_a_task_says_whether_its_source_is_standard_normal_or_a_data_set(task: str) -> None:
    samples = distribution_of(task, "source").sample(3000, rng()).numpy().astype(float)
    samples = samples[:, :: 1 + samples.shape[1] // 256]  # of thousands of pixels some are enough
    smallest = min(stats.kstest(column, "norm").pvalue for column in samples.T)
    covariance = np.cov(samples, rowvar=False)
    normal = smallest > 1e-5 and np.abs(covariance - np.eye(samples.shape[1])).max() < 0.15
    assert normal == TASKS[task].noise_source
    data_set = isinstance(distribution_of(task, "source"), Empirical)
    assert data_set == TASKS[task].data_set_source


@pytest.mark.parametrize("task", BUILT_IN)
def test_a_task_refuses_what_it_does_not_know(task: str) -> None:
    with pytest.raises(ValidationError):
        TASKS[task](stdd=1)
    for name in TASKS[task].model_fields:
        for wrong in (-1.0, math.nan, math.inf, "wide"):
            with pytest.raises(ValidationError, match=name):
                TASKS[task](**{name: wrong})


@pytest.mark.parametrize(("task", "side"), SIDES)
def test_sets_for_evaluation_are_disjoint(task: str, side: str) -> None:
    distribution = distribution_of(task, side)
    for draws in ("low_variance", "iid"):
        # Single floats coincide now and then.
        n = max(1_000, 20_000 // distribution.dim) if distribution.dim > 1 else 100
        held_out = distribution.held_out(n, rng(0), draws)
        second = distribution.second_set(n, rng(1), draws)
        assert rows_of(held_out).isdisjoint(rows_of(second))
        assert rows_of(held_out).isdisjoint(rows_of(distribution.sample(n, rng(2))))


# Two-dimensional distributions, against scikit-learn


def smallest_p(samples: np.ndarray, reference: np.ndarray, curve: np.ndarray) -> float:
    """Smallest of the p-values of two-sample KS tests.

    Of the coordinates, the radius and the distance to the noiseless curve: the last sees the
    noise, the others the range and the place.
    """
    views = [*np.eye(2), np.array([1.0, 1.0])]
    pairs = [(samples @ view, reference @ view) for view in views]
    pairs.append((np.linalg.norm(samples, axis=1), np.linalg.norm(reference, axis=1)))
    pairs.append((cdist(samples, curve).min(1), cdist(reference, curve).min(1)))
    return min(stats.ks_2samp(*pair).pvalue for pair in pairs)


def roll(n: int, noise: float) -> np.ndarray:
    return make_swiss_roll(n, noise=noise, random_state=0)[0][:, [0, 2]] / 5


@pytest.mark.parametrize("draw", ["sample", "low_variance"])
def test_swiss_roll_is_that_of_scikit_learn(draw: str) -> None:
    distribution = TASKS["gaussian_to_swiss_roll"]().target()
    samples = DRAWS[draw](distribution, 3000, rng()).double().numpy()
    assert smallest_p(samples, roll(3000, 0.8), roll(2000, 0.0)) > 0.01


@pytest.mark.parametrize("wrong", ["noise not divided", "noise divided twice", "short", "swapped"])
def test_a_wrong_swiss_roll_is_seen(wrong: str) -> None:
    samples = SwissRoll(
        noise={"noise not divided": 4.0, "noise divided twice": 0.16}.get(wrong, 0.8)
    )
    points = samples.sample(3000, rng()).double().numpy()
    if wrong == "short":
        points = points[np.linalg.norm(points, axis=1) < 2.6]
    if wrong == "swapped":
        points = points[:, ::-1]
    assert smallest_p(points, roll(3000, 0.8), roll(2000, 0.0)) < 1e-6


def moons(n: int, noise: float) -> np.ndarray:
    return 3 * make_moons(n, noise=noise, random_state=0)[0] - 1


@pytest.mark.parametrize("draw", ["sample", "low_variance"])
@pytest.mark.parametrize("task", ["moons_to_8gaussians", "gaussian_to_moons"])
def test_moons_are_those_of_scikit_learn(task: str, draw: str) -> None:
    distribution = distribution_of(task, "source" if task.startswith("moons") else "target")
    samples = DRAWS[draw](distribution, 3000, rng()).double().numpy()
    assert smallest_p(samples, moons(3000, 0.05), moons(2000, 0.0)) > 0.01


@pytest.mark.parametrize("noise", [0.05 / 3, 0.15])
def test_wrong_moons_are_seen(noise: float) -> None:
    samples = Moons(noise).sample(3000, rng()).double().numpy()
    assert smallest_p(samples, moons(3000, 0.05), moons(2000, 0.0)) < 1e-6


def s_curve(n: int, noise: float) -> np.ndarray:
    """Standardised by a large noisy sample, as one would a data set."""
    columns = make_s_curve(n, noise=noise, random_state=0)[0][:, [0, 2]]
    return columns / make_s_curve(400_000, noise=0.05, random_state=1)[0][:, [0, 2]].std(0)


@pytest.mark.parametrize("draw", ["sample", "low_variance"])
def test_the_s_curve_is_that_of_scikit_learn(draw: str) -> None:
    samples = DRAWS[draw](TASKS["gaussian_to_s_curve"]().target(), 3000, rng()).double().numpy()
    assert smallest_p(samples, s_curve(3000, 0.05), s_curve(2000, 0.0)) > 0.01


@pytest.mark.parametrize("noise", [0.025, 0.1])
def test_a_wrong_s_curve_is_seen(noise: float) -> None:
    samples = SCurve(noise).sample(3000, rng()).double().numpy()
    assert smallest_p(samples, s_curve(3000, 0.05), s_curve(2000, 0.0)) < 1e-6


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5])
def test_the_s_curve_has_unit_variance(noise: float) -> None:
    samples = SCurve(noise).sample(400_000, rng()).double()
    torch.testing.assert_close(samples.mean(0), torch.zeros(2).double(), rtol=0, atol=0.01)
    torch.testing.assert_close(samples.var(0), torch.ones(2).double(), rtol=0.01, atol=0)


def test_moons_have_equal_counts_in_low_variance_draws() -> None:
    for n in (500, 501):
        samples = (Moons(0.0).low_variance(n, rng()) + 1) / 3
        on_upper = torch.isclose(samples.norm(dim=1), torch.tensor(1.0), atol=1e-4)
        assert abs(2 * int(on_upper.sum()) - n) <= 1


# Eight Gaussians

CORNER = 5 / math.sqrt(2)
MODES = np.array(
    [
        *[(5, 0), (CORNER, CORNER), (0, 5), (-CORNER, CORNER)],
        *[(-5, 0), (-CORNER, -CORNER), (0, -5), (CORNER, -CORNER)],
    ]
)


def modes_of(samples: Tensor) -> np.ndarray:
    return cdist(samples.numpy(), MODES).argmin(1)


@pytest.mark.parametrize("task", ["gaussian_to_8gaussians", "moons_to_8gaussians"])
@pytest.mark.parametrize("draw", ["sample", "low_variance"])
def test_eight_gaussians_have_their_centres_and_width(task: str, draw: str) -> None:
    samples = DRAWS[draw](TASKS[task]().target(), 8000, rng())
    mode, points = modes_of(samples), samples.double().numpy()
    centres = np.array([points[mode == k].mean(0) for k in range(8)])
    np.testing.assert_allclose(centres, MODES, atol=0.05)
    residual = (points - MODES[mode]) / 0.316  # a standard deviation, not a variance
    assert stats.kstest(residual.ravel(), "norm").pvalue > 0.01
    assert abs(np.corrcoef(residual.T)[0, 1]) < 0.05


@pytest.mark.parametrize("n", [5, 8, 1000, 1003])
def test_low_variance_draws_have_equal_counts(n: int) -> None:
    distribution = EightGaussians(5.0, 0.316)
    counts = np.array(
        [
            np.bincount(modes_of(distribution.low_variance(n, rng(seed))), minlength=8)
            for seed in range(20)
        ]
    )
    assert (counts.sum(1) == n).all()
    assert (np.ptp(counts, axis=1) <= 1).all()
    # The remainder falls on modes at random: no mode is preferred over the seeds.
    assert n % 8 == 0 or (np.ptp(counts, axis=0) == 1).all()


def test_low_variance_draws_are_in_random_order() -> None:
    mode = modes_of(EightGaussians(5.0, 0.316).low_variance(800, rng()))
    halves = np.bincount(mode[:400], minlength=8)
    assert np.ptp(halves) > 1  # random halves; a mode in turn would have 50 each
    assert halves.min() > 20  # nor are they sorted


def test_training_draws_are_independent() -> None:
    """The counts of independent draws are multinomial: chi^2 over seeds has mean 7."""
    distribution = EightGaussians(5.0, 0.316)
    chi = [
        stats.chisquare(np.bincount(modes_of(distribution.sample(800, rng(seed)))))
        for seed in range(40)
    ]
    assert 5 < np.mean([value.statistic for value in chi]) < 9


def test_std_and_radius_act() -> None:
    distribution = TASKS["gaussian_to_8gaussians"](radius=2.0, std=0.05).target()
    samples = distribution.sample(4000, rng()).double().numpy()
    residual = samples - 0.4 * MODES[cdist(samples, 0.4 * MODES).argmin(1)]
    assert residual.std() == pytest.approx(0.05, rel=0.05)


def test_low_variance_draws_lower_the_floor_of_w2() -> None:
    distribution = EightGaussians(5.0, 0.316)
    low, iid = (
        [w2(draw(500, rng(seed)), draw(500, rng(seed + 100))) for seed in range(4)]
        for draw in (distribution.low_variance, distribution.sample)
    )
    assert np.mean(low) < 0.6 * np.mean(iid)


# Sobol points of the Gaussian


@pytest.mark.parametrize(("dim", "n"), [(2, 500), (2, 1024), (8, 1000), (64, 2000)])
def test_sobol_moments_are_nearer_to_the_truth(dim: int, n: int) -> None:
    distribution = StandardNormal((dim,))

    def errors(draw: str) -> np.ndarray:
        sets = [DRAWS[draw](distribution, n, rng(seed)).double() for seed in range(5)]
        mean = [float(x.mean(0).norm()) for x in sets]
        variance = [float((x.var(0) - 1).norm()) for x in sets]
        covariance = [float((x.T.cov() - torch.eye(dim)).norm()) for x in sets]
        return np.mean([mean, variance, covariance], axis=1)

    ratio = errors("sample") / errors("low_variance")
    assert ratio[0] > 10
    assert ratio[1] > 5
    assert ratio[2] > (1.2 if dim == 64 else 4)


def test_sobol_points_are_stratified_in_every_coordinate() -> None:
    """Of 2^k points one lies in each of 2^k equal cells: the KS distance is at most 2^-k."""
    n = 1024
    samples = StandardNormal((16,)).low_variance(n, rng()).double().numpy()
    assert max(stats.kstest(column, "norm").statistic for column in samples.T) < 1.01 / n


def test_sobol_points_are_finite_also_at_the_ends_of_the_unit_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Points on the grid of 2^-30 include 0, and 1 by rounding: rare, so they are forced."""

    class Ends:
        def __init__(self, dim: int, scramble: bool, seed: int) -> None:
            assert scramble

        def draw(self, n: int, dtype: torch.dtype) -> Tensor:
            return torch.tensor([[0.0, 1.0, 1 - 2.0**-30, 0.5]], dtype=dtype)

    distribution = StandardNormal((2,))
    assert distribution.low_variance(2**14, rng()).isfinite().all()
    monkeypatch.setattr(torch.quasirandom, "SobolEngine", Ends)
    lowest, one, highest, middle = StandardNormal((4,)).low_variance(1, rng())[0].tolist()
    assert lowest == pytest.approx(stats.norm.ppf(2.0**-31), rel=1e-6)
    assert one == highest == pytest.approx(-lowest, rel=1e-6)
    assert middle == pytest.approx(0, abs=1e-8)


# Digits


def known_images() -> dict[bytes, int]:
    """The label of every image of scikit-learn; no two of its images are equal."""
    images, labels = load_digits(return_X_y=True)
    return {
        image.astype(np.int64).tobytes(): int(y) for image, y in zip(images, labels, strict=True)
    }


def labels_of(distribution: Distribution, samples: Tensor) -> list[int]:
    """The labels in scikit-learn of samples in the units of the task."""
    original = distribution.normalisation.undo(samples).numpy()
    assert np.array_equal(original, original.round())
    assert original.min() == 0
    assert original.max() == 16
    known = known_images()
    return [known[image.tobytes()] for image in original.astype(np.int64)]


@pytest.mark.parametrize(
    ("task", "side", "label"),
    [
        ("gaussian_to_digits", "target", None),
        ("digits_3_to_2", "source", 3),
        ("digits_3_to_2", "target", 2),
    ],
)
def test_digits_are_the_images_of_scikit_learn(task: str, side: str, label: int | None) -> None:
    distribution = distribution_of(task, side)
    assert isinstance(distribution, Empirical)
    assert distribution.shape == (1, 8, 8)
    parts = distribution.train, distribution.test
    assert [part.min() for part in parts] == [-1, -1]
    assert [part.max() for part in parts] == [1, 1]
    assert rows_of(parts[0]).isdisjoint(rows_of(parts[1]))
    counts = [np.bincount(labels_of(distribution, part), minlength=10) for part in parts]
    expected = np.bincount(load_digits().target)
    if label is not None:
        expected = np.where(np.arange(10) == label, expected, 0)
    assert np.array_equal(counts[0] + counts[1], expected)  # every image, in one of the halves
    assert np.abs(counts[0] - counts[1]).max() <= 1  # each digit in equal halves
    assert rows_of(distribution.sample(3000, rng())) <= rows_of(parts[0])
    assert rows_of(distribution.held_out(10_000, rng(), "low_variance")) == rows_of(parts[1])
    assert len(distribution.held_out(10_000, rng(), "low_variance")) == len(parts[1])


def test_the_split_is_the_same_in_every_task() -> None:
    everything, threes = (
        distribution_of("gaussian_to_digits", "target"),
        distribution_of("digits_3_to_2", "source"),
    )
    assert isinstance(everything, Empirical)
    assert isinstance(threes, Empirical)
    assert rows_of(threes.train) < rows_of(everything.train)
    assert rows_of(threes.test) < rows_of(everything.test)


# Building blocks


def test_normalisation_is_undone() -> None:
    original = torch.linspace(-3, 40, 101)
    normalisation = Normalisation(shift=8.0, scale=0.25)
    torch.testing.assert_close(normalisation.undo(normalisation.apply(original)), original)
    assert normalisation.apply(torch.tensor(8.0)) == 0
    assert normalisation.apply(torch.tensor(8.25)) == 1
    assert torch.equal(Normalisation().apply(original), original)


def test_empirical_normalises_and_draws_with_replacement() -> None:
    train, test = torch.arange(6).reshape(3, 2), torch.arange(10, 14).reshape(2, 2)
    distribution = Empirical(train, test, (2,), Normalisation(shift=1, scale=2))
    assert distribution.train.dtype == distribution.test.dtype == torch.float32
    assert rows_of(distribution.sample(200, rng())) == rows_of((train.float() - 1) / 2)
    assert sorted(distribution.held_out(9, rng(), "iid").flatten().tolist()) == [4.5, 5, 5.5, 6]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["train", "test"])
def test_empirical_refuses_what_is_not_finite(name: str, bad: float) -> None:
    parts = {"train": torch.zeros(5, 3), "test": torch.zeros(5, 3)}
    parts[name][2, 1] = bad
    with pytest.raises(ValueError, match=rf"^{name}.*1 of 5"):
        Empirical(**parts, shape=(3,))


@pytest.mark.parametrize("shape", [(5, 2), (5, 4), (15,), (5, 3, 1), (0, 3)])
@pytest.mark.parametrize("name", ["train", "test"])
def test_empirical_refuses_a_wrong_shape(name: str, shape: tuple[int, ...]) -> None:
    parts = {"train": torch.zeros(5, 3), "test": torch.zeros(5, 3)} | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=rf"^{name}.*\(n, 3\)"):
        Empirical(**parts, shape=(3,))


@pytest.mark.parametrize(
    "sizes", [[20_000], [1, 8191, 1, 11_807], [7] * 2857 + [1], [8192, 11_808], [0, 19_999, 0, 1]]
)
def test_a_stream_is_the_same_sequence_whatever_the_chunks(sizes: list[int]) -> None:
    distribution = distribution_of("moons_to_8gaussians", "source")
    whole = Stream(distribution, rng(5), CPU, "moons")(20_000)
    stream = Stream(distribution, rng(5), CPU, "moons")
    chunks = [stream(k) for k in sizes]
    assert [len(chunk) for chunk in chunks] == sizes
    assert torch.equal(torch.cat(chunks), whole)
    assert len(rows_of(whole)) == 20_000  # nothing is handed out twice


class Broken(Distribution):
    """Good for a block, then one sample of the next is ``bad``."""

    shape = (2,)

    def __init__(self, bad: float) -> None:
        self.bad, self.blocks = bad, 0

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        samples = torch.zeros(n, 2)
        samples[-1, 1] = self.bad if self.blocks else 0
        self.blocks += 1
        return samples


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_stream_stops_at_what_is_not_finite(bad: float) -> None:
    stream = Stream(Broken(bad), rng(), CPU, "broken source")
    assert stream(Stream.BLOCK).eq(0).all()
    with pytest.raises(ValueError, match="broken source holds NaN or infinity in 1 of"):
        stream(1)


def test_a_stream_refuses_a_wrong_shape() -> None:
    class Flat(Distribution):
        shape = (3,)

        def sample(self, n: int, rng: torch.Generator) -> Tensor:
            return torch.zeros(n, 2)

    with pytest.raises(ValueError, match=r"flat target must have shape \(n, 3\)"):
        Stream(Flat(), rng(), CPU, "flat target")(1)
