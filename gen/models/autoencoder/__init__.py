"""Autoencoders: plain, denoising, sparse, contractive, with tied weights, and stacked."""

from gen.models.autoencoder.model import Autoencoder, corrupt
from gen.models.autoencoder.stacked import StackedAutoencoder

__all__ = ["Autoencoder", "StackedAutoencoder", "corrupt"]
