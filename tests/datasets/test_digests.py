"""Digests of tasks: the same wherever they are computed, and others when the data are."""

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from datasets import TASKS, Distribution, Empirical, Normalisation
from datasets.base import DATA_ROOT
from datasets.images import ByteImages, Images
from tests.synthetic_files import write_all

REPOSITORY = Path(__file__).parents[2]
SIDES = [(name, side) for name in TASKS for side in ("source", "target")]
PRINT_ALL = """
import json
from datasets import TASKS
print(json.dumps({name: task().digest() for name, task in TASKS.items()}))
"""


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with small data sets in all formats."""
    root = write_all(tmp_path_factory.mktemp("root"), 100, 50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATA_ROOT, str(root))
        yield root


@pytest.fixture(scope="module")
def elsewhere(root: Path) -> dict[str, str]:
    """The digests that another process computes."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT_ALL], cwd=REPOSITORY, capture_output=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", TASKS)
def test_a_digest_is_the_same_twice_and_in_another_process(
    name: str, elsewhere: dict[str, str]
) -> None:
    state = torch.get_rng_state()
    digest = TASKS[name]().digest()
    assert torch.equal(torch.get_rng_state(), state)
    assert len(digest) == 16
    assert int(digest, 16) >= 0
    assert digest == TASKS[name]().digest() == elsewhere[name]


def test_tasks_have_digests_of_their_own(elsewhere: dict[str, str]) -> None:
    assert len(set(elsewhere.values())) == len(TASKS)


class Shifted(Distribution):
    """Another distribution with one value of its draws changed."""

    def __init__(self, other: Distribution) -> None:
        self.other, self.shape = other, other.shape

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        samples = self.other.sample(n, rng).clone()
        samples[-1, -1] += 1e-3
        return samples


def with_one_value_changed(distribution: Distribution) -> Iterator[Distribution]:
    """For a data set one with another training and one with another test value."""
    if isinstance(distribution, Images):
        for name in ("train_bytes", "test_bytes"):
            images, rows = (
                getattr(distribution, name).images.clone(),
                getattr(distribution, name).rows,
            )
            images[rows[-1], -1] ^= 1
            other = copy.copy(distribution)
            setattr(other, name, ByteImages(images, rows))
            yield other
    elif isinstance(distribution, Empirical):
        for name in ("train", "test"):
            other = copy.copy(distribution)
            setattr(other, name, getattr(distribution, name).clone())
            getattr(other, name)[-1, -1] += 1e-3
            yield other
    else:
        yield Shifted(distribution)


@pytest.mark.parametrize(("name", "side"), SIDES)
def test_a_digest_changes_with_one_value_of_the_data(
    name: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TASKS[name]()
    distribution: Distribution = getattr(task, side)()
    digests = {task.digest()}
    changed = list(with_one_value_changed(distribution))
    for other in changed:
        assert other.digest() != distribution.digest()
        monkeypatch.setattr(TASKS[name], side, lambda self, other=other: other)
        digests.add(task.digest())
    assert len(digests) == 1 + len(changed)


@pytest.mark.parametrize("name", ["gaussian_to_wine", "gaussian_to_colored_digits"])
def test_a_digest_changes_with_the_units(name: str) -> None:
    target = TASKS[name]().target()
    other = copy.copy(target)
    other.normalisation = Normalisation(target.normalisation.shift, target.normalisation.scale * 2)
    assert other.digest() != target.digest()


def test_a_digest_changes_with_name_version_parameters_and_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = TASKS["gaussian_to_digits"]
    digests = [task().digest()]
    labelled = task().labelled()
    assert labelled is not None
    labels = labelled.train_labels.clone()
    labels[0] = (labels[0] + 1) % 10
    for attribute, value in (
        ("name", "other"),
        ("version", 99),
        ("labelled", lambda self: labelled._replace(train_labels=labels)),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(task, attribute, value)
            digests.append(task().digest())
    assert len(set(digests)) == 4
    assert task().digest() == digests[0]
    moons = TASKS["gaussian_to_moons"]
    assert moons(noise=0.05).digest() == moons().digest() != moons(noise=0.06).digest()
    fresh = TASKS["gaussian_to_colored_digits"](colors="fresh")
    assert fresh.target().digest() == TASKS["gaussian_to_colored_digits"]().target().digest()
    assert fresh.digest() != TASKS["gaussian_to_colored_digits"]().digest()


def other_pixel(content: bytes) -> bytes:
    batch = pickle.loads(content)
    batch["data"][7, 7] ^= 1
    return pickle.dumps(batch, protocol=2)


def other_byte(content: bytes) -> bytes:
    """The last byte of a file is a pixel, or a label: 9 becomes 8."""
    return content[:-1] + bytes([content[-1] ^ 1])


CELEBA = ("gaussian_to_celeba", "celeba_male_to_female")
EDITS: list[tuple[str, str, Callable[[bytes], bytes] | None]] = [
    ("gaussian_to_mnist", "MNIST/raw/train-images-idx3-ubyte", other_byte),
    ("gaussian_to_mnist", "MNIST/raw/t10k-images-idx3-ubyte", other_byte),
    ("gaussian_to_mnist", "MNIST/raw/train-labels-idx1-ubyte", other_byte),
    ("gaussian_to_cifar10", "cifar-10-batches-py/data_batch_2", other_pixel),
    ("gaussian_to_cifar10", "cifar-10-batches-py/test_batch", other_pixel),
    *((name, "celeba/img_align_celeba/000003.jpg", None) for name in CELEBA),
    ("folder_a_to_b", "a/0001.jpg", None),
    ("folder_a_to_b", "b/0001.jpg", None),
]


@pytest.mark.parametrize(("name", "file", "edit"), EDITS)
def test_a_file_that_changes_is_seen_in_the_same_process(
    name: str, file: str, edit: Callable[[bytes], bytes] | None, root: Path
) -> None:
    path, task = root / file, TASKS[name]()
    before, content = task.digest(), path.read_bytes()
    if edit is None:
        with Image.open(path) as image:
            image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(path)
    else:
        path.write_bytes(edit(content))
    assert task.digest() != before
    path.write_bytes(content)
    assert task.digest() == before


def test_a_file_that_is_added_to_a_folder_is_seen(root: Path) -> None:
    task = TASKS["folder_a_to_b"]()
    before, added = task.digest(), root / "a" / "new.png"
    Image.new("RGB", (50, 50), "red").save(added)
    assert task.digest() != before
    added.unlink()
    assert task.digest() == before
