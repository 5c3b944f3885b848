"""How well a field was learned, against the exact field of a large sample."""

import math
from functools import partial

import torch
from torch import Tensor

from methods.base import Draw, Field
from methods.electrostatics import capacitor_field
from methods.solvers import Flow, Solver

HEIGHTS = (0.05, 0.25, 0.5, 0.75, 0.95)  # in units of L
LINES, CHARGES = 256, 4096
ERRORS = {
    f"field_angle_{100 * h:02.0f}": f"angle to the exact field at {h:.0%} of L, degrees"
    for h in HEIGHTS
}
ERRORS["field_reversed"] = "share of points between the plates where the learned field points back"


def field_errors(
    field: Field, source: Draw, target: Draw, plate_distance: float, offset: float
) -> dict[str, float]:
    """The ``ERRORS`` of a learned field on exact field lines between the plates.

    ``CHARGES`` samples of each distribution make the exact field, and ``LINES`` more of the source
    the starts of its lines, ``offset`` above the plate. Between the plates it never points back.
    """
    p, q, x = source(CHARGES), target(CHARGES), source(LINES)
    exact = partial(capacitor_field, positive=p, negative=q, plate_distance=plate_distance)

    def slope(z: Tensor, x: Tensor) -> Tensor:
        direction, _ = exact(x, z.expand(len(x)))
        return direction[:, :-1] / direction[:, -1:].clamp_min(1e-2)

    errors, reversed_, solver, below = {}, [], Solver(solver_steps=5), offset
    for part in HEIGHTS:
        height = max(part * plate_distance, offset)
        if height > below:
            x = solver.integrate(Flow(slope, below, height, "cosine"), x).x
        below = height
        z = x.new_full((len(x),), height)
        learned = field(x, z)[0]
        cosine = torch.linalg.vecdot(learned, exact(x, z)[0]).clamp(-1, 1)
        errors[f"field_angle_{100 * part:02.0f}"] = math.degrees(float(torch.acos(cosine).mean()))
        reversed_.append(learned[:, -1] <= 0)
    errors["field_reversed"] = float(torch.cat(reversed_).double().mean())
    return errors
