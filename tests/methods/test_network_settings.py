"""Which settings of the network a method uses: the others make no cells of their own."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from methods import METHODS, Method
from methods.networks import IDLE, NetworkSettings, matched

VALUES: dict[str, list[Any]] = {"width": [8, 16], "depth": [1, 2], "dropout": [0.0, 0.1]}
SMALL = {"width": 8, "depth": 1, "match": "width"}
KINDS = [(name, {}) for name, kind in METHODS.items() if kind.trained]
KINDS += [
    ("efm", {"lines": "two_sided"}),
    ("efm", {"lines": "stop_rule"}),
    *(("efm", {"points": points}) for points in ("uniform", "mix", "released")),
    ("efm", {"points": "uniform", "target": "per_plate", "gamma": 1.0}),
]
BASES: list[dict[str, Any]] = [
    {},
    *({"far_field": value} for value in ("on", "off")),
    {"precondition": "off"},
    {"inputs": "raw", "embedding": "plain"},
]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def values_of(setting: str) -> list[Any]:
    """Every value of a setting, or two numbers."""
    return VALUES.get(setting) or list(get_args(NetworkSettings.model_fields[setting].annotation))


def built(method: Method, dim: int, settings: dict[str, Any]) -> list[tuple[str, Tensor]]:
    """The weights of a model and its values at some points."""
    source, target = normal(64, dim), 2 * normal(65, dim)[:64] + 1
    network = NetworkSettings(**settings).factory(dim)
    network = matched(network, lambda factory: method.model(factory, source, target))
    torch.manual_seed(0)
    model = method.model(network, source, target).eval()
    with torch.no_grad():
        output = model(3 * normal(9, dim), torch.linspace(0.1, 0.9, 9))
    return [*model.state_dict().items(), ("output", output)]


def are_equal(a: list[tuple[str, Tensor]], b: list[tuple[str, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        name == other and torch.equal(x, y) for (name, x), (other, y) in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("dim", [2, 16])
@pytest.mark.parametrize(("name", "given"), KINDS)
def test_a_setting_of_the_network_changes_the_model_or_is_not_used(
    name: str, given: dict[str, Any], dim: int
) -> None:
    """All values of one that is not used give the same model; of any other two differ."""
    method = METHODS[name].create(dim, **given)
    for base in BASES:
        network = NetworkSettings(**SMALL | base)
        lacking = {*IDLE["mlp"], *method.unused_network(network, dim)} - {"match"}
        for setting in set(NetworkSettings.model_fields) - {"architecture", "match", *base}:
            first, *others = (
                built(method, dim, SMALL | base | {setting: value}) for value in values_of(setting)
            )
            same = all(are_equal(first, other) for other in others)
            assert same == (setting in lacking), (setting, base)


@pytest.mark.parametrize("dim", [2, 16])
@pytest.mark.parametrize(("name", "given"), KINDS)
def test_the_width_of_every_method_is_matched(name: str, given: dict[str, Any], dim: int) -> None:
    method = METHODS[name].create(dim, **given)
    a, b = (built(method, dim, {"match": value}) for value in values_of("match"))
    assert not are_equal(a, b)
