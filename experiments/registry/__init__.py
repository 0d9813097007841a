"""Every experiment by name: `python -m experiments train NAME` runs one.

Each family has a file. An entry opens with the command that produced its published result, and with
the result to expect. A new model is a file in `gen/models/` and an entry here.
"""

from collections.abc import Iterable, Mapping

from experiments.experiment import Experiment
from experiments.registry import (
    autoencoders,
    autoregressive,
    boltzmann,
    classifiers,
    diffusion,
    gans,
    hmm,
    mixtures,
    vaes,
)
from gen.core import require


def join(families: Iterable[Mapping[str, Experiment]]) -> dict[str, Experiment]:
    """Return the experiments of all families, in order. Raise `UserError` at a repeated name."""
    joined: dict[str, Experiment] = {}
    for family in families:
        for name, experiment in family.items():
            require(name not in joined, f"two experiments are called {name}: rename one of them")
            joined[name] = experiment
    return joined


EXPERIMENTS = join(
    family.EXPERIMENTS
    for family in (
        autoencoders,
        vaes,
        gans,
        mixtures,
        autoregressive,
        boltzmann,
        hmm,
        diffusion,
        classifiers,
    )
)
