"""Generative models in JAX: one file or one folder a family, one contract and one training loop."""
