"""Published test figures, each checked against a source that states it, by experiment.

A figure stands here only if it was found written down; several of the tables that papers of this
field share (UCI sets, NADE and the mixture on MNIST) were not, and so are missing.
"""

from __future__ import annotations

from dataclasses import dataclass

from gen.estimate import Kind


@dataclass(frozen=True)
class Published:
    """A figure in nats per example, its kind, and who states it."""

    value: float
    kind: Kind
    source: str


_IWAE = "Burda et al. 2016, appendix D, fixed binarisation (as quoted by github.com/nbip/IWAE)"
_HOTAJ = "github.com/EugenHotaj/pytorch-generative"

PUBLISHED: dict[str, Published] = {
    "made_masks_binarized_mnist": Published(
        88.04, "exact", f"Germain et al. 2015, 8,000 units, 32 masks (as quoted by {_HOTAJ})"
    ),
    "vae_binarized_mnist": Published(88.71, "upper bound", _IWAE),
    "iwae_binarized_mnist": Published(87.10, "upper bound", _IWAE),
    "pixelcnn_binarized_mnist": Published(
        81.30, "exact", "van den Oord et al. 2016a (as quoted by Gulrajani et al. 2017, table 1)"
    ),
    "gated_pixelcnn_binarized_mnist": Published(
        80.10, "exact", "Gulrajani et al. 2017, table 1, their implementation, wider"
    ),
    "nade_mnist": Published(85.65, "exact", f"{_HOTAJ}, dynamic binarisation"),
    "made_mnist": Published(84.87, "exact", f"{_HOTAJ}, 8,000 units, dynamic binarisation"),
    "discrete_diffusion_mnist": Published(
        77.87,
        "upper bound",
        "Graves et al. 2023, a Bayesian flow network (as listed by paperswithcode.com)",
    ),
}
