"""Figures of matplotlib from arrays, without global state and without a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """Return images side by side in one array, row by row.

    Args:
      images: [N, H, W, C], in [0, 1]. Three channels are red, green and blue. Of any other number
        the mean is shown in grey.
      columns: images in a row.

    Returns:
      [rows·(H + 1) + 1, columns·(W + 1) + 1, 3 or 1]. Lines between the images and places without
      an image are mid-grey.
    """
    images = np.clip(np.asarray(images, np.float32), 0.0, 1.0)
    if images.shape[3] != 3:
        images = images.mean(axis=3, keepdims=True)
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 0.5)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1) + 1, i % columns * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image
    return canvas


def grid(images: np.ndarray, columns: int, labels: Sequence[str] = ()) -> Figure:
    """Draw a grid of images.

    Args:
      images: [N, H, W, C], in [0, 1], as `tile` takes them.
      columns: images in a row.
      labels: texts to the left of the rows, at most one for each row.
    """
    canvas = tile(images, columns)
    height, width = canvas.shape[:2]
    scale = max(1, round(600 / width))
    margin = 110 if labels else 0
    size = (width * scale + margin, height * scale)
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
    axes = figure.add_axes((margin / size[0], 0, 1 - margin / size[0], 1))
    axes.imshow(
        canvas.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto"
    )
    axes.set_xticks([])
    for edge in axes.spines.values():
        edge.set_visible(False)
    row = (height - 1) / max(1, -(-len(images) // columns))
    axes.set_yticks([(i + 0.5) * row for i in range(len(labels))], labels)
    axes.tick_params(length=0, labelsize=9)
    return figure


def signed(weights: np.ndarray) -> np.ndarray:
    """Scale each row of weights [N, ...] to [0, 1], with 0 at mid-grey: ½ + ½ w / max |w|."""
    weights = np.asarray(weights, np.float32)
    largest = np.abs(weights).max(axis=tuple(range(1, weights.ndim)), keepdims=True)
    return 0.5 + 0.5 * weights / np.where(largest == 0, 1, largest)


def curves(metrics: Mapping[str, tuple[Sequence[int], np.ndarray]]) -> Figure:
    """Draw one panel for each metric, with one line for each seed.

    Args:
      metrics: steps, and values [reports] or [reports, seeds], by the name of the metric.
    """
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.6 * rows), dpi=100, layout="constrained")
    for i, (name, (steps, values)) in enumerate(metrics.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.plot(steps, values, linewidth=1)
        axes.set(title=name, xlabel="step")
        axes.locator_params(axis="x", nbins=5)
        # Lines that have converged stay flat: the axis does not zoom into their rounding.
        low, high = axes.get_ylim()
        least = 1e-3 * max(abs(low), abs(high))
        if 0 < high - low < least:
            axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)
        axes.ticklabel_format(axis="y", useOffset=False)
    return figure


def heatmaps(
    tables: Mapping[str, np.ndarray],
    labels: Mapping[str, Sequence[str]] | None = None,
    rows: str = "state",
) -> Figure:
    """Draw matrices side by side.

    Args:
      tables: matrices [I, J] by name.
      labels: the labels of a matrix's columns, by its name.
      rows: the label of the vertical axis, which names what a row stands for.
    """
    figure = Figure(figsize=(5 * len(tables), 4.2), dpi=100, layout="constrained")
    for i, (name, values) in enumerate(tables.items()):
        axes = figure.add_subplot(1, len(tables), i + 1)
        image = axes.imshow(values, cmap="magma", aspect="auto", interpolation="nearest")
        axes.set(title=name, ylabel=rows)
        axes.locator_params(integer=True)
        if labels and name in labels:
            axes.set_xticks(range(values.shape[1]), labels[name])
        figure.colorbar(image, ax=axes)
    return figure


def stacked(panels: Mapping[str, np.ndarray]) -> Figure:
    """Draw sequences one below another, with time to the right.

    Args:
      panels: sequences by name: [T], drawn as a line, or [T, D], drawn as a picture with the first
        variable at the bottom.
    """
    figure = Figure(figsize=(9, 1.9 * len(panels)), dpi=100, layout="constrained")
    for i, (name, values) in enumerate(panels.items()):
        axes = figure.add_subplot(len(panels), 1, i + 1)
        if values.ndim == 1:
            axes.plot(values, linewidth=1)
            axes.set_xlim(-0.5, len(values) - 0.5)
        else:
            axes.imshow(
                values.T, cmap="Greys", aspect="auto", origin="lower", interpolation="nearest"
            )
        axes.set_title(name, fontsize=9)
        axes.locator_params(axis="y", integer=True)
    return figure


def clouds(
    panels: Mapping[str, np.ndarray], columns: int, log_density: np.ndarray | None = None
) -> Figure:
    """Draw one panel for each set of points, row by row.

    Args:
      panels: points [N, 2] in the unit square, by name.
      columns: panels in a row.
      log_density: [M, M], at the middles of M × M cells, the first variable along the second axis.
        It is drawn as contour lines at ½ and 4½ below its largest value, which lie 1 and 3 standard
        deviations from the mean of a normal density.
    """
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.8 * rows), dpi=100, layout="constrained")
    for i, (name, points) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.scatter(*np.asarray(points).T, s=2, linewidths=0)
        if log_density is not None:
            middles = (np.arange(len(log_density)) + 0.5) / len(log_density)
            ratio, levels = np.exp(log_density - log_density.max()), np.exp([-4.5, -0.5])
            axes.contour(middles, middles, ratio, levels, colors="black", linewidths=0.5)
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[], aspect="equal")
        axes.set_title(name, fontsize=9)
    return figure


def brackets(
    temperatures: Sequence[int],
    ends: Mapping[str, Sequence[tuple[float, float]]],
    exact: float | None = None,
) -> Figure:
    """Draw estimates of log Z against the number of temperatures of AIS.

    Args:
      temperatures: their numbers, [R].
      ends: R pairs (value, standard error) in nats, by the name of the estimate.
      exact: the exact value in nats, drawn as a line if it is known.
    """
    figure = Figure(figsize=(5, 3.6), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for name, values in ends.items():
        value, stderr = np.array(values).T
        axes.errorbar(temperatures, value, stderr, marker="o", markersize=3, capsize=2, label=name)
    if exact is not None:
        axes.axhline(exact, color="black", linewidth=1, label="exact")
    axes.set(xscale="log", xlabel="temperatures", ylabel="log Z / nats", title="AIS")
    axes.legend(frameon=False)
    return figure


def scatter(points: np.ndarray, labels: np.ndarray, title: str) -> Figure:
    """Draw points coloured by their class, with both axes of one scale.

    Args:
      points: [N, 2].
      labels: classes, [N].
      title: the title.
    """
    figure = Figure(figsize=(6, 5.4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for label in np.unique(labels):
        x, y = points[labels == label].T
        axes.scatter(x, y, s=5, color=f"C{int(label) % 10}", label=str(label))
    axes.set(title=title, xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(markerscale=3, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure
