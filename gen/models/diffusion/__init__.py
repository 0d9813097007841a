"""Diffusion of continuous and of discrete variables, and flow matching."""

from gen.models.diffusion.discrete import DiscreteDiffusion
from gen.models.diffusion.flow import FlowMatching
from gen.models.diffusion.gaussian import GaussianDiffusion
from gen.models.diffusion.nets import ResidualMLP, UNet

__all__ = ["DiscreteDiffusion", "FlowMatching", "GaussianDiffusion", "ResidualMLP", "UNet"]
