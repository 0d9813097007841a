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
SIDE = 28
"""Height and width of an image of MNIST, in pixels of the image."""


def cells(picture: Path) -> np.ndarray:
    """Return the images of MNIST in a picture that `gen.plots.grid` has drawn.

    The lines between the images are found by their colour, so the picture can have any scale, and
    labels on its left.

    Returns:
      [rows, columns, 28, 28], in [0, 1].

    Raises:
      ValueError: the picture is not a grid of images of 28 × 28 pixels.
    """
    pixels = matplotlib.image.imread(picture)[..., 0]
    line = np.isclose(pixels, 0.5, atol=1 / 255)  # mid-grey
    left = line.all(axis=0).argmax()  # the first vertical line, to the left of which are labels
    pixels, line = pixels[:, left:], line[:, left:]
    scale = max(1, line.all(axis=0).argmin())  # width of a line, 1 before the picture was enlarged
    canvas, lines = pixels[::scale, ::scale], line[::scale, ::scale]
    rows, columns = (size // (SIDE + 1) for size in lines.shape)
    sound = (
        lines.shape == (rows * (SIDE + 1) + 1, columns * (SIDE + 1) + 1)
        and lines[:: SIDE + 1].all()
        and lines[:, :: SIDE + 1].all()
        and np.array_equal(canvas.repeat(scale, axis=0).repeat(scale, axis=1), pixels)
    )
    if not sound:
        raise ValueError(f"{picture} is not a grid of images of {SIDE} × {SIDE} pixels")
    grid = canvas[1:, 1:].reshape(rows, SIDE + 1, columns, SIDE + 1)
    return grid.swapaxes(1, 2)[:, :, :SIDE, :SIDE]


def panel(experiment: str) -> np.ndarray:
    """Return 5 × 5 images of an experiment side by side, with white lines between them."""
    if (RESULTS / experiment / "samples.png").exists():
        images = cells(RESULTS / experiment / "samples.png")[:COLUMNS, :COLUMNS]
    else:  # a row of originals, and below it a row of their reconstructions
        images = cells(RESULTS / experiment / "reconstructions.png")[1::2]
        images = images.reshape(-1, COLUMNS, SIDE, SIDE)[:COLUMNS]
    framed = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=1)
    return framed.swapaxes(1, 2).reshape(COLUMNS * (SIDE + 1), -1)[:-1, :-1]


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
