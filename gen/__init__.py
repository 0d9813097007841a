"""Generative models in pure JAX: one file per family, one contract (`gen.core`), one loop."""
