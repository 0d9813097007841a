"""Figures of matplotlib from arrays, without global state and without a window.

A notebook shows them as the last expression of a cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib import figure as mpl_figure
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

MOST_NAMES = 40
"""Largest number of symbols that an axis names."""
FEW_VALUES = 12
"""Largest number of different values of a column that are drawn as a bar each."""


class Figure(mpl_figure.Figure):
    """A figure of matplotlib that a notebook shows as the last expression of a cell.

    Matplotlib registers the display of its own figures when `pyplot` is imported, which this
    package does not do. `_repr_png_` is the method that IPython asks an object for.
    """

    def _repr_png_(self) -> bytes:
        """Return the figure as a PNG file."""
        file = BytesIO()
        self.savefig(file, format="png", pil_kwargs={"optimize": True})
        return file.getvalue()


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


def _enlarged(images: np.ndarray, columns: int, width: int) -> np.ndarray:
    """Return images with each pixel repeated along both axes, if they are small.

    Drawn `width` pixels wide, a tile of them then has lines of about two pixels. Without this, the
    lines between images of 8 × 8 pixels would be as wide as an eighth of an image.

    Args:
      images: [N, H, W, C].
      columns: images in a row.
      width: the width of the tile, in pixels of the screen.
    """
    factor = max(1, round(width / (columns * (images.shape[2] + 1) + 1)) // 2)
    return np.repeat(np.repeat(images, factor, axis=1), factor, axis=2)


def grid(images: np.ndarray, columns: int, labels: Sequence[str] = ()) -> Figure:
    """Draw a grid of images.

    Args:
      images: [N, H, W, C], in [0, 1], as `tile` takes them.
      columns: images in a row.
      labels: texts to the left of the rows, at most one for each row.
    """
    canvas = tile(_enlarged(images, columns, 600), columns)
    height, width = canvas.shape[:2]
    scale = max(1, round(600 / width))
    margin = max(110, 8 * max(map(len, labels))) if labels else 0
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


def panels_of_images(panels: Mapping[str, np.ndarray], labels: Sequence[str]) -> Figure:
    """Draw grids of images side by side, whose rows have common labels.

    Args:
      panels: images [rows, columns, H, W, C] in [0, 1], as `tile` takes them, by title.
      labels: texts to the left of the rows.
    """
    canvases = {
        title: tile(
            _enlarged(images.reshape(-1, *images.shape[2:]), images.shape[1], 300), images.shape[1]
        )
        for title, images in panels.items()
    }
    height, width = next(iter(canvases.values())).shape[:2]
    scale = max(1, round(300 / width))
    margin, top, gap = 0.07 * max(map(len, labels)) + 0.1, 0.25, 0.1  # inches
    size = (width * scale / 100, height * scale / 100)  # of a panel
    total = (margin + len(canvases) * (size[0] + gap), size[1] + top)
    figure = Figure(figsize=total, dpi=100)
    for i, (title, canvas) in enumerate(canvases.items()):
        left = margin + i * (size[0] + gap)
        axes = figure.add_axes((left / total[0], 0, size[0] / total[0], size[1] / total[1]))
        axes.set_title(title, fontsize=9, pad=3)
        _show_grid(axes, canvas, len(labels), [] if i else labels, "auto")
    return figure


def signed(weights: np.ndarray) -> np.ndarray:
    """Scale each row of weights [N, ...] to [0, 1], with 0 at mid-grey: ½ + ½ w / max |w|."""
    weights = np.asarray(weights, np.float32)
    largest = np.abs(weights).max(axis=tuple(range(1, weights.ndim)), keepdims=True)
    return 0.5 + 0.5 * weights / np.where(largest == 0, 1, largest)


def curves(
    metrics: Mapping[str, tuple[Sequence[int] | np.ndarray, np.ndarray]],
    units: Mapping[str, str] | None = None,
    chosen: Sequence[int] = (),
    columns: int = 3,
) -> Figure:
    """Draw one panel for each metric, with one line for each seed.

    Validation is drawn with dashes, in the panel of the loss if both have one unit.

    Args:
      metrics: steps, and values [reports] or [reports, seeds], by the name of the metric.
      units: the unit of each metric, by its name.
      chosen: the step of the state that validation chose, one or one for each seed, which a dot
        marks on the line.
      columns: panels in a row, at most.
    """
    units = units or {}
    shared = {"loss", "validation"} <= {*metrics} and units.get("loss") == units.get("validation")
    panels = [name for name in metrics if not (shared and name == "validation")]
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.8 * columns, 2.8 * rows), dpi=100, layout="constrained")
    for i, name in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        if name != "validation":
            single = len(metrics[name][0]) == 1  # no line joins a single report
            axes.plot(*metrics[name], linewidth=1, marker="o" if single else "")
        if name == "validation" or (shared and name == "loss"):
            _validation(axes, *metrics["validation"], chosen)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
        axes.set(title=name, xlabel="training steps", ylabel=units.get(name, ""))
        axes.locator_params(axis="x", nbins=5)
        # Lines that have converged stay flat: the axis does not zoom into their rounding.
        low, high = axes.get_ylim()
        least = 1e-3 * max(abs(low), abs(high))
        if 0 < high - low < least:
            axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)
        axes.ticklabel_format(axis="y", useOffset=False)
    return figure


def _validation(
    axes: Axes, steps: Sequence[int] | np.ndarray, values: np.ndarray, chosen: Sequence[int]
) -> None:
    """Draw the validation line of each seed, and a dot at the step that it chose."""
    by_seed = values.reshape(len(steps), -1)
    several = by_seed.shape[1] > 1
    if several:  # a seed has the colour of its training line
        axes.set_prop_cycle(None)
    lines = axes.plot(steps, by_seed, linestyle="--", linewidth=1.5)
    lines[0].set_label("validation")
    if axes.lines[0] is not lines[0]:
        axes.lines[0].set_label("training")
    places = {step: row for row, step in enumerate(steps)}
    dots = [(step, by_seed[places[step], s]) for s, step in enumerate(chosen) if step in places]
    if dots:
        label = "chosen steps" if several else f"chosen step {dots[0][0]:,}"
        axes.plot(*zip(*dots, strict=True), "o", color="black", markersize=5, label=label)


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


def stacked(
    panels: Mapping[str, np.ndarray], symbols: Mapping[str, Sequence[str]] | None = None
) -> Figure:
    """Draw sequences one below another, with time to the right.

    Args:
      panels: sequences by name: [T], drawn as a line, or [T, D], drawn as a picture with the first
        variable at the bottom.
      symbols: names of the values 0, 1, … of a sequence [T], by its name. The vertical axis then
        has the values that occur, and names at most `MOST_NAMES` of them.
    """
    symbols = symbols or {}
    heights = []
    for name, values in panels.items():
        names = len(np.unique(values)) if name in symbols else 0
        heights.append(max(1.9, 0.15 * min(names, MOST_NAMES)))
    figure = Figure(figsize=(9, sum(heights)), dpi=100, layout="constrained")
    rows = figure.add_gridspec(len(panels), 1, height_ratios=heights)
    for i, (name, values) in enumerate(panels.items()):
        axes = figure.add_subplot(rows[i])
        axes.set_title(name, fontsize=9)
        axes.locator_params(axis="y", integer=True)
        if name in symbols:
            different, values = np.unique(values, return_inverse=True)
            ticks = range(0, len(different), -(-len(different) // MOST_NAMES))
            axes.set_yticks(ticks, [str(symbols[name][different[k]]) for k in ticks], fontsize=7)
        if values.ndim == 1:
            axes.plot(values, linewidth=1)
            axes.set_xlim(-0.5, len(values) - 0.5)
        else:
            axes.imshow(
                values.T, cmap="Greys", aspect="auto", origin="lower", interpolation="nearest"
            )
    return figure


def histograms(
    columns: Mapping[str, Mapping[str, np.ndarray]],
    categories: Mapping[str, Sequence[str]] | None = None,
    pooled: bool = False,
) -> Figure:
    """Draw the histograms of several samples of each column, one panel for each column.

    The first sample determines the bins: one for each value if it has at most `FEW_VALUES`, else 30
    over its middle 99 %. The height of a bin is its share of the sample's values. Values beyond the
    bins count in the outermost ones. Missing values (NaN) are left out.

    Args:
      columns: by the name of a column, its values [N] by the name of the sample.
      categories: names of the values 0, 1, … of a categorical column, by the name of the column.
      pooled: all samples of a column together determine the bins, in place of the first one.
    """
    categories = categories or {}
    width = min(4, len(columns))
    height = -(-len(columns) // width)
    size = (2.8 * width, 2.3 * height + 0.3) if len(columns) > 1 else (6.0, 3.2)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    for i, (title, samples) in enumerate(columns.items()):
        axes = figure.add_subplot(height, width, i + 1)
        seen = {name: values[np.isfinite(values)] for name, values in samples.items()}
        first = np.concatenate([*seen.values()]) if pooled else next(iter(seen.values()))
        edges = bins(np.arange(len(categories[title])) if title in categories else first)
        for j, (name, values) in enumerate(seen.items()):
            inside = np.clip(values, edges[0], edges[-1])
            shares = np.histogram(inside, edges)[0] / max(1, len(values))
            axes.stairs(shares, edges, fill=j == 0, alpha=0.5 if j == 0 else 1.0, label=name)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
        if title in categories:
            axes.set_xticks(range(len(categories[title])), categories[title], rotation=30)
    figure.supylabel("share", fontsize=9)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def bins(values: np.ndarray) -> np.ndarray:
    """Return the edges of the bins of a histogram, as `histograms` describes them."""
    different = np.unique(values)
    if not len(different):
        return np.array([0.0, 1.0])
    if len(different) > FEW_VALUES:
        low, high = np.percentile(values, (0.5, 99.5))
        return np.linspace(low, high, 31)
    middles = (different[1:] + different[:-1]) / 2
    gap = np.diff(different).min() if len(different) > 1 else 1.0
    return np.concatenate([[different[0] - gap / 2], middles, [different[-1] + gap / 2]])


def clouds(
    panels: Mapping[str, np.ndarray], columns: int, log_density: np.ndarray | None = None
) -> Figure:
    """Draw one panel for each set of points, row by row.

    Args:
      panels: points [N, 2], by name. All panels show the unit square, or where the points of the
        first panel leave it, the rectangle around the middle 98 % of them.
      columns: panels in a row.
      log_density: [M, M], at the middles of M × M cells, the first variable along the second axis.
        It is drawn as contour lines at ½ and 4½ below its largest value, which lie 1 and 3 standard
        deviations from the mean of a normal density.
    """
    rows = -(-len(panels) // columns)
    low, high = np.zeros(2), np.ones(2)
    first = np.asarray(next(iter(panels.values())))
    if first.min() < 0 or first.max() > 1:
        low, high = np.percentile(first, (1, 99), axis=0)
        low, high = low - 0.2 * (high - low), high + 0.2 * (high - low)
    figure = Figure(figsize=(2.6 * columns, 2.8 * rows), dpi=100, layout="constrained")
    for i, (name, points) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.scatter(*np.asarray(points).T, s=2, linewidths=0)
        if log_density is not None:
            middles = (np.arange(len(log_density)) + 0.5) / len(log_density)
            ratio, levels = np.exp(log_density - log_density.max()), np.exp([-4.5, -0.5])
            axes.contour(middles, middles, ratio, levels, colors="black", linewidths=0.5)
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
        axes.set_aspect((high[0] - low[0]) / (high[1] - low[1]))
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


def scatter(
    points: np.ndarray, labels: np.ndarray, title: str, names: Sequence[str] = ()
) -> Figure:
    """Draw points coloured by their class, with both axes of one scale.

    Args:
      points: [N, 2].
      labels: classes, [N].
      title: the title.
      names: names of the classes 0, 1, … for the legend, if they have names.
    """
    figure = Figure(figsize=(6, 5.4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for label in np.unique(labels):
        x, y = points[labels == label].T
        name = names[label] if label < len(names) else str(label)
        axes.scatter(x, y, s=5, color=f"C{int(label) % 10}", label=name)
    axes.set(title=title, xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(markerscale=3, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def latent_space(
    points: np.ndarray,
    labels: np.ndarray | None,
    title: str,
    names: Sequence[str],
    sizes: np.ndarray,
    unit: str,
    grids: Mapping[str, tuple[np.ndarray, Sequence[str] | None]],
) -> Figure:
    """Draw a map of codes and the size of each dimension, and below them grids of images.

    Args:
      points: codes in the plane, [N, 2].
      labels: their classes, [N], or None without classes.
      title: the title of the map.
      names: names of the classes 0, 1, … for the legend, if they have names.
      sizes: the size of each dimension, in falling order.
      unit: what the size is, and its unit.
      grids: by title, images [rows, columns, H, W, C] as `tile` takes them, and the labels of the
        rows or None.
    """
    canvases = {
        text: tile(images.reshape(-1, *images.shape[2:]), images.shape[1])
        for text, (images, _) in grids.items()
    }
    width = 9.0
    heights = [width / 2 * canvas.shape[0] / canvas.shape[1] for canvas in canvases.values()]
    lower = max(heights, default=0)
    figure = Figure(figsize=(width, 4 + lower + 0.4), dpi=100, layout="constrained")
    rows = figure.add_gridspec(2 if grids else 1, 1, height_ratios=[4, lower][: 1 + bool(grids)])
    upper = rows[0].subgridspec(1, 2, width_ratios=[1.2, 1])
    axes = figure.add_subplot(upper[0])
    for label in np.unique(labels) if labels is not None else [None]:
        x, y = (points if label is None else points[labels == label]).T
        text = "" if label is None else names[label] if label < len(names) else str(label)
        axes.scatter(x, y, s=4, color=f"C{int(label or 0) % 10}", label=text)
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])
    if labels is not None:
        axes.legend(
            markerscale=3, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False
        )
    axes = figure.add_subplot(upper[1])
    axes.bar(np.arange(len(sizes)), sizes)
    axes.set_title("dimensions of the code", fontsize=9)
    axes.set(xlabel="dimension, in falling order", ylabel=unit)
    if not grids:
        return figure
    below = rows[1].subgridspec(1, len(grids))
    for i, (text, canvas) in enumerate(canvases.items()):
        axes = figure.add_subplot(below[i])
        axes.set_title(text, fontsize=9)
        images, row_labels = grids[text]
        _show_grid(axes, canvas, len(images), row_labels or [])
    return figure


def _show_grid(
    axes: Any,
    canvas: np.ndarray,
    rows: int,
    labels: Sequence[str],
    aspect: Literal["equal", "auto"] = "equal",
) -> None:
    """Show a grid of images without a frame, with labels to the left of its rows.

    Args:
      axes: the axes to draw into.
      canvas: the grid, as `tile` returns it.
      rows: its number of rows, which have equal heights.
      labels: a text for each row, or none at all.
      aspect: `auto` lets the pixels fill the axes.
    """
    axes.imshow(
        canvas.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect=aspect
    )
    height = (canvas.shape[0] - 1) / max(1, rows)
    axes.set_xticks([])
    axes.set_yticks([(k + 0.5) * height for k in range(len(labels))], labels)
    axes.tick_params(length=0, labelsize=8)
    for edge in axes.spines.values():
        edge.set_visible(False)


class Curve(NamedTuple):
    """A metric of one run."""

    run: str
    steps: Sequence[int]
    values: Any  # [reports] or [reports, seeds]
    validation: bool  # whether it is taken on the validation split


def overlaid(panels: Mapping[tuple[str, str], Sequence[Curve]], runs: Sequence[str]) -> Figure:
    """Draw the curves of several runs, one panel for each metric and one colour for each run.

    Validation is dashed. A run of several seeds has a thin line for each and their mean.

    Args:
      panels: curves by (name, unit) of the metric.
      runs: names of the runs, for the legend.
    """
    colours = {run: f"C{i % 10}" for i, run in enumerate(runs)}
    columns = max(1, min(3, len(panels)))
    height = -(-len(panels) // columns)
    size = (3.6 * columns + 0.4, 2.8 * height + 0.3 * len(runs))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    for i, ((name, unit), curves) in enumerate(panels.items()):
        axes = figure.add_subplot(height, columns, i + 1)
        for curve in curves:
            values = np.array(curve.values, np.float64).reshape(len(curve.steps), -1)
            style: dict[str, Any] = {"color": colours[curve.run]}
            style |= {"linestyle": "--", "marker": "."} if curve.validation else {}
            if values.shape[1] > 1:
                axes.plot(curve.steps, values, linewidth=0.5, alpha=0.4, color=style["color"])
            if len(curve.steps) == 1:  # no line joins a single report
                style["marker"] = "o"
            axes.plot(curve.steps, values.mean(axis=1), linewidth=1.2, **style)
        axes.set(title=name, xlabel="training steps", ylabel=unit)
        axes.locator_params(axis="x", nbins=5)
        axes.ticklabel_format(axis="y", useOffset=False)
    handles = [Line2D([], [], color=colours[run], label=run) for run in runs]
    if any(curve.validation for curves in panels.values() for curve in curves):
        handles += [
            Line2D([], [], color="black", label="training"),
            Line2D([], [], color="black", linestyle="--", marker=".", label="validation"),
        ]
    figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=9)
    return figure


def against(
    lines: Mapping[str, Sequence[tuple[Any, float, float]]], field: str, measure: str
) -> Figure:
    """Draw values with their standard errors against a field, one line for each name.

    Numbers are placed by value, on a logarithmic axis if they are spaced geometrically
    (`is_geometric`). Other values are placed side by side in their order.

    Args:
      lines: (field, value, standard error) of each point, by the name of the line.
      field: the label of the horizontal axis.
      measure: the label of the vertical axis, with its unit.
    """
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    values = list(dict.fromkeys(str(x) for points in lines.values() for x, *_ in points))
    numbers = [x for points in lines.values() for x, *_ in points]
    numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers)
    for name, points in lines.items():
        if numeric:
            points = sorted(points)
        places = [x if numeric else values.index(str(x)) for x, *_ in points]
        _, heights, errors = zip(*points, strict=True)
        axes.errorbar(places, heights, errors, marker="o", markersize=4, capsize=2, label=name)
    if not numeric:
        axes.set_xticks(range(len(values)), values)
    elif is_geometric(numbers):
        axes.set_xscale("log")
        marks = sorted(set(numbers))
        axes.set_xticks(marks, [f"{x:g}" for x in marks])
        axes.minorticks_off()
    axes.set(xlabel=field, ylabel=measure)
    if any(lines):
        axes.legend(frameon=False, fontsize=9)
    return figure


def by_labels(
    lines: Mapping[tuple[str, str], Sequence[tuple[int, float, float]]], title: str
) -> Figure:
    """Draw errors against the number of labels, one line for each method, on logarithmic axes.

    The features set the colour of a line, and the classifier its dashes. Features of an untrained
    model, whose names begin with "untrained", have the colour of the trained one's and are pale.

    Args:
      lines: (number of labels, error rate, standard error) of each point, by the names of the
        features and of the classifier.
      title: the title of the figure.
    """
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    features = dict.fromkeys(name.removeprefix("untrained ") for name, _ in lines)
    classifiers = dict.fromkeys(classifier for _, classifier in lines)
    colours = {name: f"C{i}" for i, name in enumerate(features)}
    dashes = dict(zip(classifiers, ("-", "--", ":"), strict=False))
    for (name, classifier), points in lines.items():
        labels, errors, stderrs = zip(*sorted(points), strict=True)
        axes.errorbar(
            labels,
            [100 * error for error in errors],
            [100 * stderr for stderr in stderrs],
            label=f"{name}, {classifier}",
            color=colours[name.removeprefix("untrained ")],
            alpha=0.35 if name.startswith("untrained ") else 1.0,
            linestyle=dashes[classifier],
            marker="o",
            markersize=4,
            capsize=2,
        )
    marks = sorted({labels for points in lines.values() for labels, *_ in points})
    axes.set(xscale="log", yscale="log", title=title)
    axes.set(xlabel="number of labels", ylabel="test error, %")
    axes.set_xticks(marks, [f"{mark:,}" for mark in marks])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.grid(which="both", axis="y", alpha=0.2)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def defects(
    x: np.ndarray,
    masks: np.ndarray,
    maps: Mapping[str, np.ndarray],
    chosen: Sequence[int] | np.ndarray,
) -> Figure:
    """Draw images, and below each its defect and its heat maps.

    Args:
      x: decoded images, [N, H, W, C].
      masks: pixels of defects, [N, H, W].
      maps: heat maps [N, H, W] by name. The colours of each go from its 50 % to its 99.8 % quantile
        over all images.
      chosen: numbers of the images to draw.
    """
    rows = ("image", "defect", *maps)
    figure = Figure(figsize=(1.05 * len(chosen) + 1.4, 1.1 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(chosen), squeeze=False)
    for column, i in enumerate(chosen):
        axes[0, column].imshow(x[i].mean(axis=-1), cmap="gray", vmin=0, vmax=1)
        axes[1, column].imshow(masks[i], cmap="gray", vmin=0, vmax=1)
        for row, of_kind in enumerate(maps.values(), 2):
            low, high = np.quantile(of_kind, (0.5, 0.998))
            axes[row, column].imshow(of_kind[i], cmap="inferno", vmin=low, vmax=high)
    for each in axes.flat:
        each.set(xticks=[], yticks=[])
    for row, name in enumerate(rows):
        axes[row, 0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    return figure


def is_geometric(numbers: Sequence[float]) -> bool:
    """Return whether the ratios of successive numbers differ less than their differences do.

    Of two numbers, the larger one must be at least 3 times the smaller one.
    """
    values = np.unique(np.asarray(numbers, np.float64))
    if len(values) < 2 or values[0] <= 0:
        return False
    if len(values) == 2:
        return bool(values[1] >= 3 * values[0])
    gaps, log_gaps = np.diff(values), np.diff(np.log(values))
    return bool(log_gaps.max() / log_gaps.min() < gaps.max() / gaps.min())
