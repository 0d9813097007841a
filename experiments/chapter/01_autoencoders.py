# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Autoencoders

# %%
import gen
from gen import data, plots
from gen.models.autoencoder import Autoencoder

# %% tags=["parameters"] quick={"STEPS": 20}
STEPS = 300  # training steps of the autoencoder

# %%
mnist = data.load("mnist")
model = Autoencoder()
result = gen.fit(model, mnist.train, decode=mnist.format.decode, steps=STEPS, batch_size=256)

# %%
x = mnist.test["x"][:20] / 255
plots.grid(x, columns=10)
