"""Comparisons of methods: accuracies with their seeds, and held-out curves."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Patch

COLOURS = ("#4c566a", "#d08770", "#2e7d6b", "#5e81ac", "#b48ead")


def accuracy_figure(
    values: Mapping[str, Mapping[str, Sequence[float]]], methods: Sequence[str], scored: str = "test"
) -> Figure:
    """One line per probe, one point per seed with a bar at the mean, one colour per method.

    Args:
        values: by probe, by method: the accuracy of each seed, in [0, 1].
        methods: in the order of the bars.
        scored: the split of the scored images, for the axis.
    """
    figure = Figure(figsize=(8, 0.15 * len(values) * (len(methods) + 1) + 1), layout="constrained")
    axis = figure.subplots()
    step = 0.8 / len(methods)
    for line, by_method in enumerate(values.values()):
        for place, method in enumerate(methods):
            seeds = [100 * value for value in by_method.get(method, ())]
            if seeds:
                height = line - 0.4 + step * (place + 0.5)
                colour = COLOURS[place % len(COLOURS)]
                axis.barh(height, sum(seeds) / len(seeds), step * 0.9, color=colour, alpha=0.45)
                axis.plot(seeds, [height] * len(seeds), "o", markersize=3, color=colour)
    axis.set_yticks(range(len(values)), list(values))
    axis.set_ylim(len(values) - 0.5, -0.5)
    axis.tick_params(labelsize=8)
    axis.set_xlabel(f"{scored} accuracy, %")
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    handles = [Patch(color=COLOURS[place % len(COLOURS)], alpha=0.45) for place in range(len(methods))]
    figure.legend(handles, methods, loc="outside upper center", ncols=len(methods), frameon=False)
    return figure


def curves_figure(
    curves: Mapping[str, Mapping[str, Sequence[Sequence[tuple[float, float]]]]], methods: Sequence[str]
) -> Figure:
    """One axis per quantity, one colour per method, one thin line per seed.

    Args:
        curves: by the axis' title, by method: for each seed, (epoch, value) pairs; one axis or more.
        methods: all of them, in the order of the colours.
    """
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (title, by_method) in zip(axes, curves.items(), strict=False):
        for method, seeds in by_method.items():
            colour = COLOURS[methods.index(method) % len(COLOURS)]
            for number, points in enumerate(seeds):
                axis.plot(
                    *zip(*points, strict=True),
                    marker=".",
                    linewidth=1,
                    color=colour,
                    label=method if number == 0 else None,
                )
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("epoch", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        if len(by_method) > 1:
            axis.legend(fontsize=7, frameon=False)
    for axis in axes[len(curves) :]:
        axis.axis("off")
    return figure
