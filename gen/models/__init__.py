"""Generative models, one module or package for each family, by the contract in `gen.core`."""
