"""Draw docs/overview.png, samples of every family side by side: `python docs/overview.py`.

The samples are cut from the published pictures of runs on MNIST.
"""

from pathlib import Path

import matplotlib.image
import numpy as np
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent.parent / "experiments" / "results"
PANELS = {
    "mixture": "mixture_binarized_mnist",
    "autoregressive": "gated_pixelcnn_binarized_mnist",
    "hidden Markov model": "hmm_binarized_mnist",
    "VAE": "vae_conv_binarized_mnist",
    "Boltzmann machine": "rbm_binarized_mnist",
    "diffusion": "diffusion_mnist_likelihood",
    "GAN": "dcgan_mnist",
    "autoencoder (reconstructions)": "ae_mnist",
}
"""The experiment of each family, by title."""

COLUMNS = 5
"""Images in each row and column of a panel."""
CELL = 29
"""Pixels of an image of MNIST and of the line beside it; pictures show each pixel as 2 × 2."""
LABELS = 110
"""Width of the labels on the left of a picture of reconstructions."""


def cells(picture: Path, left: int = 0) -> np.ndarray:
    """Return the images in a picture of a grid, [rows, columns, 28, 28].

    Args:
      picture: a file that `gen.plots.grid` has drawn.
      left: width of the labels.
    """
    pixels = matplotlib.image.imread(picture)[::2, left::2, 0]
    rows, columns = (size // CELL for size in pixels.shape)
    grid = pixels[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL)
    return grid.swapaxes(1, 2)[:, :, 1:, 1:]


def panel(experiment: str) -> np.ndarray:
    """Return 5 × 5 images of an experiment side by side, with white lines between them."""
    if (RESULTS / experiment / "samples.png").exists():
        images = cells(RESULTS / experiment / "samples.png")[:COLUMNS, :COLUMNS]
    else:  # each second row of reconstructions has the originals
        images = cells(RESULTS / experiment / "reconstructions.png", LABELS)[1::2]
        images = images.reshape(-1, COLUMNS, 28, 28)[:COLUMNS]
    framed = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=1)
    return framed.swapaxes(1, 2).reshape(COLUMNS * CELL, -1)[:-1, :-1]


def main() -> None:
    """Draw the picture."""
    figure = Figure(figsize=(12, 6.5), dpi=100, facecolor="white")
    for axes, (title, experiment) in zip(figure.subplots(2, 4).flat, PANELS.items(), strict=True):
        axes.imshow(panel(experiment), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=13)
        axes.axis("off")
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.95, wspace=0.03, hspace=0.1)
    figure.savefig(Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
