"""Faults of adversarial training that the metrics of a report show, each with a remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping

from gen.models.gan.losses import LossName

UNDECIDED: dict[LossName, float] = {
    "non_saturating": 2 * math.log(2),
    "minimax": 2 * math.log(2),
    "least_squares": 1.0,
    "hinge": 2.0,
    "relativistic": math.log(2),
}
"""The discriminator's loss where D = 0 everywhere. The Wasserstein loss has no lower bound."""

SATURATED = 0.01
"""Share of the undecided loss below which the discriminator counts as saturated."""
VANISHED = 1e-4
"""Norm below which the generator's gradient counts as vanished."""
COLLAPSED = 0.1
"""Diversity below which the samples count as collapsed."""
EXPLODED = 100.0
"""Value of a penalty of weight 1 above which it counts as exploding: a slope of D above 11 under
`gradient_penalty`, above 14 under `r1`."""


def hints(
    loss: LossName, penalty_weight: float, weight_clip: float, metrics: Mapping[str, float]
) -> dict[str, str]:
    """Return a line with cause and remedy for each fault that the metrics show, by its name.

    Clipped weights make every slope of D small, and Adam's steps do not depend on the scale of the
    gradient. The norm of the generator's gradient is therefore no sign of a fault with them.

    Args:
      loss: the loss of the model.
      penalty_weight: the weight of its gradient penalty.
      weight_clip: the bound on the parameters of its discriminator, 0 for none.
      metrics: means of the metrics over the steps since the last report.
    """
    d_loss, gradient, diversity = (metrics[name] for name in ("d_loss", "g_gradient", "diversity"))
    lines = {}
    if d_loss < SATURATED * UNDECIDED.get(loss, -math.inf):
        lines["discriminator saturated"] = (
            f"d_loss is {d_loss:.2g}: the discriminator tells every sample from data, so its "
            "gradient says little to the generator; try a penalty (r1), spectral_norm, dropout in "
            "the discriminator or a smaller one"
        )
    if gradient < VANISHED and not weight_clip:
        other_loss = "the loss non_saturating in place of minimax, " if loss == "minimax" else ""
        lines["generator's gradient vanished"] = (
            f"g_gradient is {gradient:.2g}: the generator learns little; try {other_loss}a penalty "
            "(r1), or a discriminator that learns more slowly"
        )
    if diversity < COLLAPSED:
        lines["collapse"] = (
            f"diversity is {diversity:.2g}, where data have 1: samples are nearly alike; try pack "
            "2, a penalty (r1), the loss relativistic or a lower learning rate"
        )
    if metrics.get("penalty", 0.0) > EXPLODED * penalty_weight:
        lines["penalty exploding"] = (
            f"penalty is {metrics['penalty']:.2g}: the discriminator is steeper than the penalty "
            "can hold; try a lower learning rate or clip_norm of the optimizer"
        )
    return lines
