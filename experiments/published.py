"""Test figures that others have published, by experiment, each with a source that states it.

Figures whose source could not be read are left out. This concerns tables that several papers share,
such as the results on the UCI sets, and of NADE and mixtures on MNIST.
"""

from __future__ import annotations

from dataclasses import dataclass

from gen.estimate import Kind


@dataclass(frozen=True)
class Published:
    """A published figure."""

    value: float
    """nats per example"""
    kind: Kind
    """relation of the figure to the negative log-likelihood"""
    source: str
    """publication that states it, with its link"""


_IWAE = (
    "Burda et al. 2016 (https://arxiv.org/abs/1509.00519), appendix D, fixed binarisation (as "
    "quoted by https://github.com/nbip/IWAE)"
)
_PIXELVAE = "Gulrajani et al. 2017 (https://arxiv.org/abs/1611.05013), table 1"
_HOTAJ = "https://github.com/EugenHotaj/pytorch-generative"

PUBLISHED: dict[str, Published] = {
    "made_masks_binarized_mnist": Published(
        88.04,
        "exact",
        "Germain et al. 2015 (https://arxiv.org/abs/1502.03509), 8,000 units, 32 masks (as quoted "
        f"by {_HOTAJ})",
    ),
    "vae_binarized_mnist": Published(88.71, "upper bound", _IWAE),
    "iwae_binarized_mnist": Published(87.10, "upper bound", _IWAE),
    "pixelcnn_binarized_mnist": Published(
        81.30,
        "exact",
        f"van den Oord et al. 2016a (https://arxiv.org/abs/1601.06759) (as quoted by {_PIXELVAE})",
    ),
    "gated_pixelcnn_binarized_mnist": Published(
        80.10, "exact", f"{_PIXELVAE}, their implementation, wider"
    ),
    "nade_mnist": Published(85.65, "exact", f"{_HOTAJ}, dynamic binarisation"),
    "made_mnist": Published(84.87, "exact", f"{_HOTAJ}, 8,000 units, dynamic binarisation"),
    "discrete_diffusion_mnist": Published(
        77.87,
        "upper bound",
        "Graves et al. 2023 (https://arxiv.org/abs/2308.07037), a Bayesian flow network (as listed "
        "by https://paperswithcode.com/paper/bayesian-flow-networks)",
    ),
}
