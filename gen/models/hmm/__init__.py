"""Hidden Markov models: `HMM`, its emissions, and exact inference on plain arrays.

`inference` has the sequential algorithms; `parallel` has them in parallel over blocks of steps.
"""

from gen.models.hmm import inference, parallel
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
    "parallel",
]
