"""Evaluate published weights, as the tests do in a process that compiles with all optimisations."""

import warnings
from dataclasses import replace

import gen
from experiments import evaluation
from experiments.registry import EXPERIMENTS
from gen import data


def values_of(name: str, rows: int | None, seed: int) -> dict[str, float]:
    """Return the values of the estimates on the test split, by name.

    Args:
      name: the experiment whose weights are published.
      rows: the number of test examples, the first ones; None for all.
      seed: the seed of the run.
    """
    dataset = data.load(EXPERIMENTS[name].data)
    if rows:
        some = {name: array[:rows] for name, array in dataset.test.items()}
        dataset = replace(dataset, test=some)
    # A probe trains other classifiers.
    experiment = replace(EXPERIMENTS[name], probe=False).on(dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # AIS warns where its bracket is wide
        results = evaluation.evaluate_state(experiment, dataset, gen.load(name).state, "test", seed)
    return {of_name: result.value for of_name, result in results.items()}
