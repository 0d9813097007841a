"""Hidden Markov models: `HMM`, its emissions, and `inference`, exact inference on plain arrays."""

from gen.models.hmm import inference
from gen.models.hmm.emissions import Bernoulli, Categorical, Gaussian, GaussianMixture, Poisson
from gen.models.hmm.model import HMM

__all__ = [
    "HMM",
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "GaussianMixture",
    "Poisson",
    "inference",
]
