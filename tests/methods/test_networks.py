"""The networks: what is exact about them before any training."""

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods import METHODS
from methods.efm import FieldModel
from methods.electrostatics import capacitor_field, poisson_field
from methods.flow import VelocityModel
from methods.networks import (
    MLP,
    NETWORKS,
    CosineEmbedding,
    NetworkFactory,
    NetworkSettings,
    ScaledNetwork,
    UNet,
    architecture_of,
    matched,
    parameters_of,
    radial_inputs,
)
from methods.pfgm import PoissonModel
from tests.networks import given


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


def samples(dim: int) -> tuple[Tensor, Tensor]:
    """A source and a target of different centres and sizes."""
    target = 0.5 * normal(2000, dim, seed=1) + 2
    target[::2] -= 3
    return normal(2000, dim), target


def sphere(count: int, n: int, radius: float) -> Tensor:
    u = normal(count, n, seed=5)
    return radius * u / torch.linalg.vector_norm(u, dim=1, keepdim=True)


def no_width(t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(t), torch.zeros_like(t)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=1)


# --- MLP ----------------------------------------------------------------------------------------


def skip_only(inputs: int, scalars: int, outputs: int) -> MLP:
    """An MLP whose nonlinear part is zero."""
    network = MLP(
        NetworkSettings(width=8, depth=2, skip="on"), (inputs,), scalars, outputs
    ).double()
    for parameter in network.layers.parameters():
        nn.init.zeros_(parameter)
    return network


def test_skip_is_a_linear_map_gated_by_the_scalar() -> None:
    network = skip_only(5, 3, 4)
    x, y = normal(20, 5).double(), normal(20, 5, seed=1).double()
    e, d = normal(20, 3, seed=2).double(), normal(20, 3, seed=3).double()
    # linear in x, affine in the embedding
    torch.testing.assert_close(network(2 * x - 3 * y, e), 2 * network(x, e) - 3 * network(y, e))
    torch.testing.assert_close(
        network(x, 0.25 * e + 0.75 * d), 0.25 * network(x, e) + 0.75 * network(x, d)
    )
    assert (network(x, e) - network(x, d)).abs().max() > 1e-3
    assert network(x, e).abs().max() > 1e-3


def test_skip_represents_the_velocity_between_gaussians() -> None:
    """(1 - t) A + t B is within reach when A and B share their directions."""
    network = skip_only(3, 1, 3)
    rotation = torch.linalg.qr(normal(3, 3).double())[0]
    at_0, at_1 = torch.tensor([1.0, 2, -1]).double(), torch.tensor([0.5, -3, 4]).double()
    with torch.no_grad():
        network.skip_in.weight.copy_(rotation.T)
        network.skip_out.weight.copy_(rotation)
        network.skip_gate.bias.copy_(at_0)
        network.skip_gate.weight.copy_((at_1 - at_0)[:, None])
    x = normal(10, 3, seed=4).double()
    t = torch.full((10, 1), 0.3).double()
    matrix = rotation @ torch.diag(0.7 * at_0 + 0.3 * at_1) @ rotation.T
    torch.testing.assert_close(network(x, t), x @ matrix.T)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("depth", [1, 4])
def test_mlp_shapes(skip: bool, depth: int) -> None:
    settings = NetworkSettings(width=8, depth=depth, skip="on" if skip else "off")
    network = MLP(settings, (5,), 3, 4)
    assert network(normal(7, 5), normal(7, 3)).shape == (7, 4)
    assert sum(isinstance(layer, nn.SiLU) for layer in network.layers) == depth
    # Without the skip nothing but SiLU layers; with it only the three maps more.
    names = {name.split(".")[0] for name, _ in network.named_parameters()}
    assert names - {"layers"} == ({"skip_in", "skip_gate", "skip_out"} if skip else set())


@pytest.mark.parametrize(
    ("setting", "dim", "expected"),
    [
        ("auto", 2, False),
        ("auto", 15, False),
        ("auto", 16, True),
        ("auto", 64, True),
        ("on", 2, True),
        ("off", 64, False),
    ],
)
def test_skip_setting(setting: str, dim: int, expected: bool) -> None:
    network = NetworkSettings(width=8, depth=1, skip=setting).factory(dim)(2, dim + 1)
    assert isinstance(network, MLP)
    assert network.skip is expected
    assert network(normal(3, dim), normal(3, 2)).shape == (3, dim + 1)


# --- Embeddings ---------------------------------------------------------------------------------


def test_cosine_embedding() -> None:
    embedding = CosineEmbedding(8)
    s = torch.tensor([0.0, 0.25, 0.5, 1.0])
    values = embedding(s)
    assert values.shape == (4, 8)
    assert torch.equal(values[:, 0], s)
    assert values[0, 1:].tolist() == pytest.approx([1] * 7)
    assert values[3, 1:].tolist() == pytest.approx([-1, 1] * 3 + [-1], abs=1e-5)
    assert values[2, 1:5].tolist() == pytest.approx([0, -1, 0, 1], abs=1e-5)
    # The harmonics are orthogonal on the mid-point grid.
    grid = embedding((torch.arange(64) + 0.5) / 64)[:, 1:].double()
    torch.testing.assert_close(grid.T @ grid / 32, torch.eye(7).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dim", [2, 64])
def test_radial_inputs_are_bounded_and_keep_the_direction(dim: int) -> None:
    for radius in (1e-2, 1.0, 1e3, 1e6):
        v = sphere(50, dim, radius * math.sqrt(dim))
        inputs, log_radius = radial_inputs(v)
        assert inputs.shape == (50, 2 * dim)
        assert log_radius.shape == (50, 1)
        near, unit = inputs.split(dim, dim=1)
        assert cosine(near, v).min() > 1 - 1e-5
        assert cosine(unit, v).min() > 1 - 1e-5
        assert torch.linalg.vector_norm(unit, dim=1).max() <= math.sqrt(dim) * (1 + 1e-5)
        assert torch.linalg.vector_norm(near, dim=1).max() <= 18 * math.sqrt(dim) * (1 + 1e-5)
        expected = math.log(math.sqrt(1 + radius**2))
        assert log_radius.mean() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    _, log_radius = radial_inputs(torch.zeros(1, dim), torch.full((1, 1), 1e4))
    assert float(log_radius) == pytest.approx(math.log(1e4), rel=1e-4)


# --- The models of the methods ------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "radius"), [(2, 200.0), (3, 200.0), (8, 5000.0)])
@pytest.mark.parametrize("plate_distance", [6.0, 30.0])
def test_field_model_is_the_field_of_the_plates_far_away(
    dim: int, radius: float, plate_distance: float
) -> None:
    """Untrained, before, beside and behind the plates.

    Plates of different sizes leave a quadrupole, (D + 1) (s_P^2 - s_Q^2) / (L r) of the dipole.
    """
    source, target = samples(dim)
    source = source + 1
    model = FieldModel(NetworkSettings().factory(dim), source, target, plate_distance)
    assert model.far_field
    points = sphere(500, dim + 1, radius)
    x, z = points[:, :-1], points[:, -1] + plate_distance / 2
    with torch.no_grad():
        f = model(x, z)
    expected, _ = capacitor_field(x, z, source, target, plate_distance)
    assert cosine(f, expected).min() > 0.999
    norm = torch.linalg.vector_norm(f, dim=1)
    assert (norm / math.sqrt(dim + 1) - 1).abs().max() < 0.02


@pytest.mark.parametrize("dim", [2, 8, 9, 64])
def test_model_shapes(dim: int) -> None:
    network = NetworkSettings(width=8, depth=1).factory(dim)
    source, target = samples(dim)
    x, s = normal(7, dim), torch.linspace(0.1, 0.9, 7)
    assert FieldModel(network, source, target, 6.0)(x, s).shape == (7, dim + 1)
    assert VelocityModel(network, source, target, no_width)(x, s).shape == (7, dim)
    assert PoissonModel(network, target, 1.0, 40.0)(x, s).shape == (7, dim + 1)


@pytest.mark.parametrize(("dim", "spreads"), [(2, 300), (16, 3000), (64, 3000)])
def test_poisson_model_is_a_point_charge_far_away(dim: int, spreads: float) -> None:
    _, target = samples(dim)
    radius = spreads * float(target.std(0).mean()) * math.sqrt(dim)
    gamma = 5.0
    model = PoissonModel(NetworkSettings().factory(dim), target, gamma, 40.0)
    points = sphere(500, dim + 1, radius)
    x, z = target.mean(0) + points[:, :-1], points[:, -1].abs()
    with torch.no_grad():
        f = model(x, z)
    expected, _ = poisson_field(x, z, target)
    assert cosine(f, expected).min() > 0.999
    norm = math.sqrt(dim) * radius / (radius + gamma)
    assert torch.linalg.vector_norm(f, dim=1).tolist() == pytest.approx([norm] * 500, rel=0.01)


@pytest.mark.parametrize("dim", [2, 64])
def test_poisson_model_flows_to_its_mean_charge(dim: int) -> None:
    """z f_x / f_z = x - y at every height, and |f| = sqrt(D) |E| / (|E| + gamma)."""
    gamma = 2.0
    _, target = samples(dim)
    model = PoissonModel(NetworkSettings().factory(dim), target, gamma, 40.0).double()
    x = 3 * normal(400, dim).double()
    z = torch.logspace(-3, 2, 400, dtype=torch.float64)
    with torch.no_grad():
        f, mean = model(x, z), model.mean_charge(x, z)
    assert (f[:, -1] > 0).all()
    torch.testing.assert_close(z[:, None] * f[:, :-1] / f[:, -1:], x - mean)
    # From f alone: invert the normalisation to |E|, and the height is |E| f_z / |f|.
    norm = torch.linalg.vector_norm(f, dim=1) / math.sqrt(dim)
    assert (norm < 1).all()
    field_norm = gamma * norm / (1 - norm)
    torch.testing.assert_close(field_norm * f[:, -1] / (math.sqrt(dim) * norm), z)


def test_poisson_model_stays_on_the_charges_at_height_zero() -> None:
    """Close to the data the nearest charge is x: the flow stops there."""
    _, target = samples(2)
    model = PoissonModel(NetworkSettings().factory(2), target, 1.0, 40.0)
    x = target[:100]
    with torch.no_grad():
        near, far = (model.mean_charge(x, torch.full((100,), z)) for z in (1e-3, 10.0))
    scale = float(target.std(0).mean())
    assert (near - x).abs().max() < 0.2 * scale
    assert (far - x).abs().mean() > 0.2 * scale


@pytest.mark.parametrize("inputs", ["radial", "standardised"])
@pytest.mark.parametrize("precondition", ["on", "off"])
@pytest.mark.parametrize("dim", [2, 64])
def test_models_follow_the_units_of_the_data(dim: int, precondition: str, inputs: str) -> None:
    """Stretched and shifted data: the same network describes the stretched, shifted field."""
    c, shift = 4.0, 10.0
    (source, target), x = samples(dim), normal(30, dim)
    wide_source, wide_target, wide_x = (c * data + shift for data in (source, target, x))
    s = torch.linspace(0.05, 0.95, 30)
    network = NetworkSettings(precondition=precondition, inputs=inputs).factory(dim)

    torch.manual_seed(7)
    velocity = VelocityModel(network, source, target, no_width)(x, s)
    torch.manual_seed(7)
    wide = VelocityModel(network, wide_source, wide_target, no_width)(wide_x, s)
    torch.testing.assert_close(wide, c * velocity, rtol=1e-3, atol=1e-4)

    network = replace(network, settings=network.settings.model_copy(update={"embedding": "ends"}))
    z = 6 * s
    torch.manual_seed(7)
    field = FieldModel(network, source, target, 6.0)(x, z)
    torch.manual_seed(7)
    model = FieldModel(network, wide_source, wide_target, 6 * c)
    torch.testing.assert_close(model(wide_x, c * z), field, rtol=1e-3, atol=1e-3)

    torch.manual_seed(7)
    mean = PoissonModel(network, target, 1.0, 40.0).mean_charge(x, s)
    torch.manual_seed(7)
    poisson = PoissonModel(network, wide_target, 1.0, 40.0 * c)
    torch.testing.assert_close(
        poisson.mean_charge(wide_x, c * s), c * mean + shift, rtol=1e-3, atol=1e-3
    )


# --- Settings that all models share --------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("name", ["fm", "ot-cfm", "ifm"])
def test_velocities_ask_for_unit_variance_at_every_time(name: str, t: float) -> None:
    """What the network is to give has mean 0, variance 1 and no slope in x, whatever the pairs."""
    method = METHODS[name].create(2)
    source, target = (s.double() for s in samples(2))
    n = len(source)
    guess, raised = (
        method.model(given(Constant(c), inputs="standardised"), source, target).double()
        for c in (0.0, 1.0)
    )
    rng = torch.Generator().manual_seed(3)
    x0, x1 = method.pairs(lambda k: source, lambda k: target, n, rng)
    times = torch.full((n,), t, dtype=torch.float64)
    (s, slope), noise = method.width(times), normal(n, 2, seed=9).double()
    x = torch.lerp(x0, x1, times[:, None]) + s[:, None] * noise
    base = guess(x, times)
    wanted = (x1 - x0 + slope[:, None] * noise - base) / (raised(x, times) - base)
    assert wanted.mean(0).abs().max() < 0.1
    assert float(wanted.square().mean()) == pytest.approx(1, abs=0.06)
    offset = x - x.mean(0)
    assert abs(float((offset * wanted).mean() / offset.square().mean().sqrt())) < 0.06


class Constant(nn.Module):
    """A network that gives a constant."""

    def __init__(self, output: float) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return torch.full_like(x[:, :2], self.output)


@pytest.mark.parametrize("dim", [2, 64])
def test_a_preconditioned_field_leads_from_plate_to_plate(dim: int) -> None:
    """f_z > 0 whatever the network says, |f| = sqrt(D + 1), and along the linear guess at first."""
    network = NetworkSettings(far_field="off").factory(dim)
    source, target = samples(dim)
    model = FieldModel(network, source, target, 6.0, sigma=0.02)
    x, z = 5 * normal(200, dim), 6 * torch.linspace(-0.2, 1.2, 200)
    with torch.no_grad():
        f = model(x, z)
    assert (f[:, -1] > 0).all()
    torch.testing.assert_close(f.norm(dim=1), torch.full((200,), math.sqrt(dim + 1)))
    for parameter in model.network.parameters():
        nn.init.zeros_(parameter)
    t = (z / 6).clamp(0, 1)[:, None]
    _, guess, _ = model.segments.precondition(x, t, (0.02 + 0 * t, 0 * t))
    with torch.no_grad():
        f = model(x, z)
    torch.testing.assert_close(6 * f[:, :-1] / f[:, -1:], guess, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("embedding", "columns"), [("plain", 1), ("cosine", 8), ("ends", 2)])
@pytest.mark.parametrize(("inputs", "wide"), [("raw", 1), ("standardised", 1), ("radial", 2)])
def test_what_a_network_sees(inputs: str, wide: int, embedding: str, columns: int) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor, scalars: Tensor) -> Tensor:
            seen.append((x, scalars))
            return x[:, :3]

    settings = NetworkSettings(inputs=inputs, embedding=embedding)
    built = ScaledNetwork(NetworkFactory(settings, (3,)), 3).network
    assert built.layers[0].in_features == 3 * wide + columns + (inputs == "radial")
    model = ScaledNetwork(given(Spy(), 3, inputs=inputs, embedding=embedding), 3, (0.0, 4.0))
    x, v = normal(5, 3), 100 * normal(5, 3, seed=1)
    s = torch.tensor([0.01, 0.05, 2.0, 2.04, 3.99])
    model(x, v, s)
    points, scalars = seen[0]
    assert points.shape == (5, 3 * wide)
    assert scalars.shape == (5, columns + (inputs == "radial"))
    if inputs == "radial":  # bounded however far outside
        assert points.abs().max() < 6 * 3 * math.sqrt(3) + 1
    else:
        assert torch.equal(points, x if inputs == "raw" else v)
    first = scalars[:, 0]
    if embedding == "plain":
        assert torch.equal(first, s)
    elif embedding == "cosine":
        torch.testing.assert_close(first, s / 4)
    else:  # what is next to an end is told apart as nothing else is
        assert first[1] - first[0] > 5 * (first[3] - first[2])
        torch.testing.assert_close(scalars[4, 1], scalars[0, 0])


@pytest.mark.parametrize(
    ("dim", "lines"), [(2, "forward"), (16, "forward"), (64, "forward"), (2, "two_sided")]
)
def test_all_methods_have_as_many_parameters(dim: int, lines: str) -> None:
    """Within 3% of a plain network from (x, t) to D outputs, whatever the models are made of."""
    network, (source, target) = NetworkSettings().factory(dim), samples(dim)
    plain = parameters_of(network(1, dim))
    for name, kind in METHODS.items():
        settings = {"lines": lines} if name == "efm" else {}
        method = kind.create(dim, **settings)
        factory = matched(network, lambda one, m=method: m.model(one, source[:9], target[:9]))
        found = parameters_of(method.model(factory, source, target))
        assert found == (pytest.approx(plain, rel=0.03) if method.trained else 0), name


def test_no_width_is_halved_to_match() -> None:
    """The linear paths of two plates alone have more weights than a plain network."""
    network, (source, target) = NetworkSettings().factory(64), samples(64)
    method = METHODS["efm"].create(64, lines="two_sided")
    factory = matched(network, lambda one: method.model(one, source, target))
    assert factory.settings.width == 128


def test_segments_of_efm_are_those_of_its_pairs() -> None:
    """Their ends go together where pairs are optimal, and do not where they are independent."""
    source, target = 3 * normal(256, 9), 5 * normal(256, 9, seed=1) + 1
    covariances = [
        METHODS["efm"]
        .create(9, coupling=coupling)
        .model(NetworkSettings().factory(9), source, target)
        .segments.r
        for coupling in ("independent", "ot")
    ]
    assert abs(covariances[0]) < 1
    assert covariances[1] > 5


@pytest.mark.parametrize("points", ["uniform", "mix", "mesh"])
def test_a_field_that_is_learned_behind_the_plates_may_point_back(points: str) -> None:
    source, target = samples(9)
    method = METHODS["efm"].create(9, points=points)
    model = method.model(NetworkSettings().factory(9), source, target)
    assert model.preconditioned == (points == "uniform")


def test_what_is_not_to_be_matched_stays() -> None:
    def build(factory: NetworkFactory) -> nn.Module:
        return factory(100, 3)

    for settings, shape in (
        (NetworkSettings(match="width"), (2,)),
        (NetworkSettings(architecture="unet"), (3, 16, 16)),
    ):
        network = settings.factory(*shape)
        assert matched(network, build) == network
    network = NetworkSettings().factory(2)
    assert matched(network, lambda factory: nn.Identity()) == network
    assert matched(network, build).settings.width < 128


def test_half_precision_rounds_the_products_and_nothing_else() -> None:
    networks = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        networks.append(NetworkSettings(precision=precision).factory(2)(1, 2))
    x, embedding = torch.randn(64, 2), torch.rand(64, 1)
    exact, rounded = (network(x, embedding) for network in networks)
    assert rounded.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in networks[1].parameters())
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-4 < error < 3e-2  # bfloat16 has eight bits: 4e-3 a product


# The U-Net


def unet(
    shape: tuple[int, ...], extra: int = 1, more_inputs: int = 0, size: str = "tiny", **given: Any
) -> UNet:
    torch.manual_seed(0)
    factory = NetworkSettings(architecture="unet", unet=size, **given).factory(*shape)
    dim = math.prod(shape)
    network = factory(3, dim + extra, more_inputs * dim)
    assert isinstance(network, UNet)
    return network


@pytest.mark.parametrize(
    ("size", "shape", "millions"),
    [
        ("tiny", (3, 16, 16), (0.6, 0.75)),
        ("small", (3, 16, 16), (1.6, 2.2)),
        ("paper", (3, 32, 32), (55, 62)),
        ("paper", (3, 64, 64), (55, 62)),
    ],
)
def test_sizes_of_the_u_net(size: str, shape: tuple[int, ...], millions: tuple[float, ...]) -> None:
    with torch.device("meta"):
        network = unet(shape, size=size)
    found = sum(p.numel() for p in network.parameters() if p.requires_grad) / 1e6
    assert millions[0] < found < millions[1]
    attended = [name for name, _ in network.named_modules() if name.endswith("attentions.0")]
    assert any("down_blocks" in name for name in attended) == (size == "paper")


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 8), (3, 28, 28), (3, 20, 12)])
def test_a_u_net_sees_and_gives_images(shape: tuple[int, ...]) -> None:
    """Vectors in and out are images of that shape; what is beyond them is averaged over it."""
    network = unet(shape, extra=2).eval()
    x, s = torch.randn(2, math.prod(shape)), torch.randn(2, 3)
    with torch.no_grad():
        output = network(x, s)
    assert output.shape == (2, math.prod(shape) + 2)
    maps = []
    network.unet.register_forward_hook(lambda m, i, o: maps.append((i[0], o.sample)))
    with torch.no_grad():
        network(x, s)
    images, found = maps[0]
    assert torch.equal(images.reshape(2, -1), x)
    assert images.shape == (2, *shape)
    planes = found[:, : shape[0]].reshape(2, -1)
    assert torch.equal(output[:, : planes.shape[1]], planes)
    torch.testing.assert_close(output[:, -2:], found[:, -2:].mean((2, 3)))


def test_further_inputs_of_a_u_net_are_further_channels() -> None:
    network = unet((3, 16, 16), more_inputs=1)
    seen = []
    network.unet.register_forward_hook(lambda m, i, o: seen.append(i[0]))
    first, second = torch.randn(2, 768), torch.randn(2, 768)
    network(torch.cat([first, second], 1), torch.zeros(2, 3))
    assert torch.equal(seen[0][:, :3].reshape(2, -1), first)
    assert torch.equal(seen[0][:, 3:].reshape(2, -1), second)


def test_every_weight_of_a_u_net_is_used_and_the_scalar_is_seen() -> None:
    network = unet((3, 16, 16))
    x, s = torch.randn(4, 768), torch.randn(4, 3)
    network(x, s).square().sum().backward()
    unused = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    network.eval()
    with torch.no_grad():
        moved = network(x, s + 1e-2) - network(x, s)
    assert moved.abs().max() > 1e-4


def test_dropout_is_for_training_alone() -> None:
    network = unet((3, 16, 16), dropout=0.5)
    x, s = torch.randn(2, 768), torch.randn(2, 3)
    assert not torch.equal(network(x, s), network(x, s))
    network.eval()
    assert torch.equal(network(x, s), network(x, s))


@pytest.mark.parametrize(
    ("shape", "architecture", "kind"),
    [
        ((2,), "auto", MLP),
        ((1, 8, 8), "auto", MLP),
        ((1, 8, 8), "unet", UNet),
        ((3, 16, 16), "auto", UNet),
        ((3, 16, 16), "mlp", MLP),
    ],
)
def test_images_have_a_u_net(shape: tuple[int, ...], architecture: Any, kind: type) -> None:
    factory = NetworkSettings(architecture=architecture).factory(*shape)
    assert isinstance(factory(1, math.prod(shape)), kind)


def test_a_u_net_of_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"architecture = unet is for images, .* shape \(2,\)"):
        NetworkSettings(architecture="unet").factory(2)


def test_a_u_net_on_vectors_is_refused_before_anything_is_built() -> None:
    settings = NetworkSettings(architecture="unet")
    for refused in (settings.kind, settings.used):
        with pytest.raises(ValueError, match=r"^architecture = unet is for images, and .*\(2,\)$"):
            refused(2)
    assert settings.kind(3, 8, 8) == "unet"
    assert settings.used(3, 8, 8).architecture == "unet"
    assert NetworkSettings(architecture="mlp").kind(3, 64, 64) == "mlp"


def test_every_architecture_is_known_by_its_name() -> None:
    assert {"mlp": MLP, "unet": UNet} == NETWORKS
    for name, kind in NETWORKS.items():
        network = NetworkSettings(architecture=name, width=8).factory(3, 8, 8)(2, 192)
        assert isinstance(network, kind)
        assert architecture_of(nn.Sequential(network)) == name
    assert architecture_of(nn.Linear(1, 1)) is None


def test_diffusers_is_imported_by_images_alone() -> None:
    code = (
        "import sys, bench.run, bench.execute.worker; from methods.networks import NetworkSettings;"
        "NetworkSettings().factory(2)(1, 2); print('diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
