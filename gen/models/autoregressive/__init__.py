"""Fully visible belief nets, p(x) = Π_d p(x_d | x_<d): one model around five kinds of net.

`model.py`: `Autoregressive`, with what they share; `vectors.py`: FVSBN, NADE, MADE; `pixels.py`:
PixelCNN and gated PixelCNN.
"""

from gen.models.autoregressive.model import Autoregressive, Net, State
from gen.models.autoregressive.pixels import GatedPixelCNN, PixelCNN
from gen.models.autoregressive.vectors import FVSBN, MADE, NADE

__all__ = ["FVSBN", "MADE", "NADE", "Autoregressive", "GatedPixelCNN", "Net", "PixelCNN", "State"]
