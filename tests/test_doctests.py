"""The examples in docstrings give the results that they show."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name", ["gen.core", "gen.estimate", "gen.train", "gen.models.diffusion.samplers"]
)
def test_examples_give_the_results_that_they_show(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
