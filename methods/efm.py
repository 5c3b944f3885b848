"""Electrostatic Field Matching.

Samples of the source are positive charges on the plate z = 0 of R^{D+1}, samples of the target
negative ones on z = L. The lines of their field carry the one distribution to the other.
"""

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from methods.base import LOW_DIM, Draw, ExactMethod, Mixture, Regression, Transport, register
from methods.base import Field as CapacitorField
from methods.capacitor import points as schemes
from methods.capacitor.diagnostics import ERRORS, field_errors
from methods.capacitor.flux import FluxModel, FluxRegression, Plates, flux_field
from methods.capacitor.mixtures import MixtureField
from methods.capacitor.models import ExactField, FieldModel, TwoPlates, as_columns, from_columns
from methods.capacitor.points import LinePool, Points
from methods.capacitor.transport import FLOWS, CapacitorMethod
from methods.electrostatics import mean_displacement, poisson_field, softened, superpose, unit
from methods.flow import optimal_pairs
from methods.networks import NetworkFactory, NetworkSettings


@register
class ExactElectrostaticField(ExactMethod, CapacitorMethod):
    """Samples move along the exact field lines of ``charges`` training samples on each plate.

    With ``of = distributions`` the field is that of the distributions themselves, without the noise
    of samples; both must be mixtures of Gaussians (:mod:`methods.capacitor.mixtures`).

    ``landing = charge`` moves the end of every line that landed to the charge of the target plate
    next to it, where the field of finitely many charges ends.
    """

    name: ClassVar[str] = "efm-exact"
    title: ClassVar[str] = "Exact electrostatic field"
    reference: ClassVar[str] = "Kolesov et al., ICML 2025, https://arxiv.org/abs/2502.02367"

    of: Literal["charges", "distributions"] = "charges"
    landing: Literal["plate", "charge"] = "plate"

    def idle(self) -> dict[str, Any]:
        return super().idle() | ({"charges": None} if self.of_mixtures else {})

    def check(self) -> None:
        super().check()
        if self.of_mixtures and self.landing == "charge":
            raise ValueError("landing must be plate with of = distributions, got charge")

    @property
    def of_mixtures(self) -> bool:
        return self.of == "distributions"

    def mixture_model(self, source: Mixture, target: Mixture) -> nn.Module:
        return MixtureField(source, target, self.plate_distance)

    @classmethod
    def defaults(cls, dim: int, noise_source: bool, data_set: bool) -> dict[str, Any]:
        # Those of EFM; its field, of charges that are no pairs, needs both sides of the plates.
        return {} if dim <= LOW_DIM else {"L": 6.0, "lines": "two_sided"}

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        return ExactField(source[: self.charges], target[: self.charges], self.plate_distance)

    def field(self, model: nn.Module) -> CapacitorField:
        def exact(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            output: Tensor = model(x, z)
            return output[:, :-1], output[:, -1]

        return exact

    def land(self, model: nn.Module, result: Transport) -> Transport:
        if self.landing == "plate":
            return result
        charges = model.negative
        assert isinstance(charges, Tensor)
        nearest = charges[torch.cdist(result.end, charges).argmin(1)]
        snapped = torch.where(result.landed[:, None], nearest, result.end)
        states, heights = result.path, result.heights
        if states is not None and heights is not None:
            states, heights = torch.cat([states, snapped[None]]), torch.cat([heights, heights[-1:]])
        return result._replace(end=snapped, path=states, heights=heights)


@register
class ElectrostaticFieldMatching(CapacitorMethod):
    r"""Algorithms 1 and 2 of the paper, with the exact superposition field as target.

    Training: charges p_1..p_N from the source at z = 0 and q_1..q_N from the target at z = L;
    at points x~ of R^{D+1}

    .. math:: f(\tilde x) \approx \sqrt{D + 1}\, E(\tilde x) / |E(\tilde x)|.

    With ``lines`` other than ``forward`` the flux is needed on both sides of both plates: then
    direction and log-norm of each plate's field are learned, by a network for each plate
    (:class:`~methods.capacitor.models.TwoPlates`), and the direction of their superposition. This
    is made for low dimension: log|E| of a plate grows with D, and so does its part in the loss.

    That is ``recipe = published``. With ``recipe = flux`` the mean charges of both plates and the
    odds between them are learned at points of the flux (:mod:`methods.capacitor.flux`), which is
    unbiased in every dimension, from ``charges`` samples a plate and batch, or with ``charges = 1``
    from a pair a point. It has lines on both sides of the plates, unless told otherwise, and the
    field of the distributions, not that of pairs.

    ``points`` says where the published recipe learns the field. Each point starts from a charge
    pair (p, q):

    * ``uniform``: (1 - t/L) p + t/L q at z = t, t ~ U(0, L), plus a step of length \|eps\| in a
      uniform direction of R^{D+1}, eps ~ N(0, sigma^2 I) in R^{D+1} (Algorithm 1);
    * ``capacitor``: the same with eps ~ N(L/2, sigma^2 I), which covers the space beside and
      behind the plates;
    * ``log``: at a log-uniform distance in [0.02, 2 L] of p or q, in a uniform direction;
    * ``mix``: half ``uniform``, half ``log``; ``poisson``: PFGM's perturbation of p or q;
    * ``mesh``: uniform in a box that reaches L/2 beyond the charges;
    * ``lines``: half ``log``, half near exact lines of the field (:class:`LinePool`);
    * ``released``: exactly on the segment, at log-like heights over the target plate
      (:func:`~methods.capacitor.points.on_segments`), as in the authors' released code, whose other
      settings :meth:`create` brings with it.

    In two dimensions field lines bulge far out of the data and ``uniform`` misses them; from D of
    about 16 on they do not, and ``uniform`` with a small sigma is best.

    ``endpoints`` says whether p and q are among the charges whose field is learned. If they are
    (``included``), in high dimension that field is nearly the field of the pair alone: a
    normalised conditional matching rather than the field of the plates.

    ``coupling`` says which p and q are a pair: ``independent`` ones, as published, or those of the
    optimal coupling of the charges (``ot``). The field knows of no pairs; but near segments whose
    ends are among the charges it is that of the pair, and samples follow the coupling.

    ``target = per_plate`` adds the plates' directions instead of their fields; kept for comparison.
    With ``gamma`` > 0 it is what the authors' released code learns: with u_P and u_Q the weighted
    mean displacements from the charges of either plate (:func:`mean_displacement`),

    .. math:: f(\tilde x) \approx \sqrt{D + 1} \left(
              \frac{u_P}{|u_P| + \gamma} - \frac{u_Q}{|u_Q| + \gamma} \right).
    """

    name: ClassVar[str] = "efm"
    title: ClassVar[str] = "Electrostatic Field Matching"
    reference: ClassVar[str] = "Kolesov et al., ICML 2025, https://arxiv.org/abs/2502.02367"
    diagnostics: ClassVar = {**ERRORS, **FLOWS}
    search: ClassVar = {"L": "3:60:log", "sigma": "0.01:3:log"}
    named_settings: ClassVar[tuple[str, ...]] = ("recipe", "endpoints")

    recipe: Literal["published", "flux"] = "published"
    points: schemes.PointScheme = "mix"
    sigma: float | None = Field(1.0, ge=0)
    charges: int = Field(256, ge=1, le=100_000)
    endpoints: Literal["included", "independent"] = "included"
    coupling: Literal["independent", "ot"] = "independent"
    target: Literal["superposition", "per_plate"] = "superposition"
    gamma: float | None = Field(0.0, ge=0)

    @classmethod
    def defaults(cls, dim: int, noise_source: bool, data_set: bool) -> dict[str, Any]:
        # Ours, from results/efm_ablation (test draws): the paper has one L and sigma a task.
        if dim <= LOW_DIM:
            return {}
        # A point sigma sqrt(D) off its segment sees its own charge radially, not along the line, up
        # to about that height: sigma sqrt(D) stays below the distances between data.
        return {"L": 6.0, "sigma": 0.02, "points": "uniform"}

    @classmethod
    def create(
        cls, dim: int, noise_source: bool = True, data_set: bool = False, **settings: Any
    ) -> Self:
        """As :meth:`Method.create`; some settings bring defaults of others with them."""
        if "flux" in (settings.get("recipe"), settings.get("points")):
            settings = {**cls._flux(dim), **settings}
        elif settings.get("lines", "forward") != "forward":
            # They need the field of the plates, not of the batch, wherever lines go.
            settings = {"endpoints": "independent", "charges": 1024, **settings}
            if dim <= LOW_DIM:
                settings = {"points": "lines", **settings}
        if settings.get("points") == "released":  # what the released code has with them
            released = {"sigma": 0.1, "target": "per_plate", "gamma": 5.0}
            settings = {**released, "variable": "log_z", "offset": 1e-3, **settings}
        return super().create(dim, noise_source, data_set, **settings)

    @staticmethod
    def _flux(dim: int) -> dict[str, Any]:
        """Defaults with ``recipe = flux``."""
        found: dict[str, Any] = {"recipe": "flux", "points": "flux", "lines": "two_sided"}
        found |= {"L": 6.0, "tolerance": 3e-3}  # well below the error of what is learned
        if dim <= LOW_DIM:
            return found
        # A charge is about h sqrt(D) away from the flux at its height h, and a part of about
        # h sqrt(D) over the radius of the data lies outside of them: lines end at low heights.
        return {**found, "L": 1.0, "offset": 1e-3, "charges": 1}

    def idle(self) -> dict[str, Any]:
        idle = super().idle()
        if self.recipe == "flux":
            idle |= {"endpoints": "included"}
        if self.points not in ("uniform", "capacitor", "mix", "released"):
            idle |= {"sigma": None, "coupling": "independent"}
        if self.lines != "forward":  # plate by plate there is one target
            idle |= {"target": "superposition"}
        if self.lines != "forward" or self.target != "per_plate":
            idle |= {"gamma": None}
        return idle

    def check(self) -> None:
        super().check()
        if (self.recipe == "flux") != (self.points == "flux"):
            raise ValueError(f"points = {self.points} does not go with recipe = {self.recipe}")
        released = self.points == "released"
        if released and self.lines != "forward":
            raise ValueError(f"lines must be forward with points = released, got {self.lines}")
        if released and not 0 < (self.sigma or 0) < self.plate_distance:
            raise ValueError(
                f"sigma must be above 0 and below L = {self.plate_distance:g} with points ="
                f" released, got {self.sigma:g}"
            )

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        if self.recipe == "flux":
            return FluxModel(network, source, target, self._plates)
        if self.lines == "forward":
            if self.coupling == "ot":
                n = min(len(source), len(target))
                source, target = source[:n], optimal_pairs(source[:n], target[:n], self.charges)
            sigma = (self.sigma or 0.0) if self._along_segments else None
            return FieldModel(network, source, target, self.plate_distance, sigma)
        return TwoPlates(network, source, target, self.plate_distance)

    @property
    def _plates(self) -> Plates:
        return Plates.of(self.plate_distance, self.offset)

    @property
    def _along_segments(self) -> bool:
        # Others are learned behind the plates too, where the field may point back.
        return self.points in ("uniform", "released") and not self.gamma

    def unused_network(self, network: NetworkSettings, dim: int) -> tuple[str, ...]:
        if self.recipe == "flux":  # the far field is part of the model
            return ("precondition", "far_field")
        if self.lines != "forward":  # each plate has inputs and scales of its own
            return ("inputs", "embedding", "precondition", "far_field")
        preconditioned = self._along_segments and not FieldModel.has_far_field(network, dim)
        return () if preconditioned else ("precondition",)

    def field(self, model: nn.Module) -> CapacitorField:
        def learned(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            output: Tensor = model(x, z)
            if self.recipe == "flux":
                return flux_field(x, z, self.plate_distance, output)
            if self.lines != "forward":
                return from_columns(output)
            return unit(output)[0], torch.zeros_like(z)

        return learned

    def diagnose(self, model: nn.Module, source: Draw, target: Draw) -> dict[str, float]:
        return field_errors(self.field(model), source, target, self.plate_distance, self.offset)

    def batches(self, source: Draw, target: Draw, n: int, rng: Generator) -> Iterator[Regression]:
        if self.recipe == "flux":
            both_sides = self.lines != "forward"
            flux = FluxRegression(source, target, self._plates, self.charges, both_sides)
            while True:
                yield flux.batch(n, rng)
        pool = LinePool(self, source, target, rng) if self.points == "lines" else None
        while True:
            p, q = positive, negative = source(self.charges), target(self.charges)
            if self.endpoints == "independent":
                p, q = source(n), target(n)
            pair = torch.randint(len(p), (2, n), generator=rng, device=rng.device)
            if self.coupling == "ot":
                q, pair[1] = optimal_pairs(p, q, len(p)), pair[0]
            x, z = self._points(p[pair[0]], q[pair[1]], rng, pool)
            yield self._regression(x, z, positive, negative)

    def _points(self, p: Tensor, q: Tensor, rng: Generator, pool: LinePool | None) -> Points:
        distance, sigma = self.plate_distance, self.sigma or 0.0
        match self.points:
            case "log":
                return schemes.around_charges(p, q, distance, rng)
            case "mesh":
                return schemes.in_box(p, q, distance, rng)
            case "poisson":
                return schemes.perturbed(p, q, distance, self.lines != "forward", rng)
            case "released":
                return schemes.on_segments(p, q, distance, sigma, rng)
            case "mix" | "lines":
                half = len(p) // 2
                x, z = schemes.around_charges(p[:half], q[:half], distance, rng)
                if pool is None:
                    more = schemes.along_segments(p[half:], q[half:], distance, 0.0, sigma, rng)
                else:
                    more = pool(len(p) - half, rng)
                return torch.cat([x, more[0]]), torch.cat([z, more[1]])
            case "flux":
                raise ValueError("points of the flux are drawn together with their targets")
            case "uniform" | "capacitor":
                mean = distance / 2 if self.points == "capacitor" else 0.0
                return schemes.along_segments(p, q, distance, mean, sigma, rng)

    def _regression(self, x: Tensor, z: Tensor, positive: Tensor, negative: Tensor) -> Regression:
        """What is learned at the points of the field of the charges (N, D) of both plates."""
        scale = math.sqrt(x.shape[1] + 1)
        plates = (positive, z.double()), (negative, z.double() - self.plate_distance)
        if self.gamma:
            means = [mean_displacement(x.double(), h, charges) for charges, h in plates]
            u_p, u_q = (softened(mean, self.gamma, scale) for mean in means)
            return Regression(x, z, (u_p - u_q).to(x))
        fields = [poisson_field(x.double(), h, charges) for charges, h in plates]
        if self.lines != "forward":
            columns = as_columns(fields[0], fields[1])
            weight = columns.isfinite().all(1)  # not so on a charge
            return Regression(x, z, columns.nan_to_num(0, 0, 0).to(x), weight.to(x))
        if self.target == "per_plate":
            fields = [(direction, torch.zeros_like(norm)) for direction, norm in fields]
        direction, _ = superpose(fields[0], fields[1])
        return Regression(x, z, scale * direction.to(x))
