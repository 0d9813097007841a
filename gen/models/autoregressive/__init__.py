"""Fully visible belief nets, p(x) = Π_d p(x_d | x_<d): one model around five causal networks.

- `model.py`: `Autoregressive`, the model, and the interface of its networks;
- `vectors.py`: FVSBN, NADE and MADE, networks over vectors;
- `pixels.py`: PixelCNN and gated PixelCNN, networks over images.
"""

from gen.models.autoregressive.model import Autoregressive, CausalNet, State
from gen.models.autoregressive.pixels import GatedPixelCNN, PixelCNN
from gen.models.autoregressive.vectors import FVSBN, MADE, NADE

__all__ = [
    "FVSBN",
    "MADE",
    "NADE",
    "Autoregressive",
    "CausalNet",
    "GatedPixelCNN",
    "PixelCNN",
    "State",
]
