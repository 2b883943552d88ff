"""The report of a comparison: report.html, a page in one file, and the same as Markdown and CSV."""

import base64
import csv
import html
import io
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from vitmae.atomic import atomic_write
from vitmae.comparison.plan import Design, Row
from vitmae.comparison.results import Cell, Cost, Results
from vitmae.comparison.runner import best_classifier
from vitmae.plots.comparison import accuracy_figure, curves_figure
from vitmae.tables import Table, as_markdown

_STAGE_TITLES = {"pretrain": "pre-training", "finetune": "fine-tuning"}
_INTERVAL = (
    "accuracy in per cent: mean ± standard deviation over seeds, and in brackets the 95 % interval of the mean "
    "over the draw of the scored images (Wilson). From scratch, the probes score the untrained encoder."
)
_COST = "Cost of each row: mean over seeds, and only the best fine-tuning"
_WITH_TEST = (
    "Hyper-parameters, the k of kNN and the checkpoint were chosen on validation images, with all their labels. The "
    "test images score each chosen model once."
)
_WITHOUT_TEST = (
    "This set has no test split, so validation images are scored. Probes chose their hyper-parameters on a part of the "
    "training images, but fine-tuning chose its checkpoint on the same images that score it, so its accuracies are too "
    "high. To publish numbers, use a set with a test split."
)


def write_report(design: Design, rows: Sequence[Row], results: Results, folder: Path) -> list[Path]:
    """Write report.html, report.md and report.csv, and return their paths.

    Args:
        design: the settings of the comparison.
        rows: the plan.
        results: the results so far.
        folder: the folder of the comparison.
    """
    texts = {
        "report.html": _html(design, rows, results),
        "report.md": _markdown(design, rows, results),
        "report.csv": _csv(results),
    }
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write(text.encode())
    return [folder / name for name in texts]


def accuracy_table(results: Results) -> Table:
    """A header and one line per probe: mean ± standard deviation (95 % interval) of each method, in per cent."""
    lines = [["probe", *results.titles.values()]]
    for key, by_method in results.table.items():
        lines.append([key.label, *(_accuracy(by_method.get(method)) for method in results.titles)])
    return lines


def _accuracy(cell: Cell | None) -> str:
    if cell is None:
        return ""
    spread = "" if math.isnan(cell.std) else f" ± {100 * cell.std:.1f}"
    low, high = cell.interval
    return f"{100 * cell.mean:.1f}{spread} ({100 * low:.1f} to {100 * high:.1f})"


def cost_table(results: Results) -> Table:
    """A header and one line per method and stage; images, FLOPs and time are means over seeds."""
    lines = [["run", "runs", "images seen", "PFLOP", "wall time", "trained parameters"]]
    for (method, stage), costs in results.costs.items():
        lines.append(
            [
                f"{results.titles[method]}, {_STAGE_TITLES[stage]}",
                str(len(costs)),
                f"{_mean(costs, 'images'):,.0f}",
                f"{_mean(costs, 'flops') / 1e15:.3g}",
                _minutes(costs),
                f"{costs[0].parameters / 1e6:.2f} M",
            ]
        )
    return lines


def _mean(costs: Sequence[Cost], what: str) -> float:
    return sum(getattr(cost, what) for cost in costs) / len(costs)


def _minutes(costs: Sequence[Cost]) -> str:
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    return f"{sum(known) / len(known) / 60:.1f} min" if known else ""


def commands(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """(job, exact command) of every row; once the best fine-tuning is known, only that one."""
    for row in rows:
        best = best_classifier(row)
        tuned = [row.finetune_of(best)] if best else row.finetunes
        for job in (row.pretrain, row.probes, *tuned, best):
            if job is not None:
                yield job.name, job.command


def _headline(design: Design, results: Results) -> str:
    seeds = len(design.seeds)
    labels = "all labels" if design.labels == 1 else f"{100 * design.labels:g} % of the labels"
    images = {cell.num_images for by_method in results.table.values() for cell in by_method.values()}
    scored = f", {max(images):,} {_split(results)} images" if images else ""
    return f"{seeds} seed{'s' * (seeds > 1)}, {labels}{scored}"


def _split(results: Results) -> str:
    return "validation" if "val" in results.splits else "test"


def _explanation(results: Results) -> str:
    return f"{_split(results).capitalize()} {_INTERVAL} {_WITHOUT_TEST if 'val' in results.splits else _WITH_TEST}"


def _markdown(design: Design, rows: Sequence[Row], results: Results) -> str:
    parts = ["# What does masking buy?", _headline(design, results)]
    parts += [f"`{shlex.join(design.train)}`"] if design.train else []
    parts += [_explanation(results)]
    parts += [as_markdown(accuracy_table(results)).rstrip()]
    parts += [f"## {_COST}", as_markdown(cost_table(results)).rstrip()]
    if results.missing:
        parts += ["## Not done", "\n".join(f"- {name}" for name in results.missing)]
    parts += ["## Commands", "\n".join(f"- {name}: `{command}`" for name, command in commands(rows))]
    return "\n\n".join(parts) + "\n"


def _csv(results: Results) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("probe", "pooling", "shots", "method", "seed", "accuracy", "images", "setting"))
    for key, by_method in results.table.items():
        for method, cell in by_method.items():
            for seed, value in cell.per_seed.items():
                setting = " ".join(f"{name}={number:g}" for name, number in cell.settings[seed].items())
                writer.writerow(
                    (key.probe, key.pooling, key.shots or "", method, seed, value, cell.num_images, setting)
                )
    return text.getvalue()


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; }
th { text-align: left; } td { font-variant-numeric: tabular-nums; } td.best { font-weight: 600; }
img { max-width: 100%; } img.panel { max-width: 24rem; }
code { font-size: 12px; overflow-wrap: anywhere; } .wide { overflow-x: auto; }
summary { cursor: pointer; } .note { color: #666; }
"""


def _html(design: Design, rows: Sequence[Row], results: Results) -> str:
    parts = [
        "<h1>What does masking buy?</h1>",
        f"<p>{html.escape(_headline(design, results))}</p>",
        f"<p><code>{html.escape(shlex.join(design.train))}</code></p>",
        f"<p class=note>{html.escape(_explanation(results))}</p>",
        _accuracies_as_html(results),
    ]
    titles = list(results.titles.values())
    if results.table:
        parts.append(_picture(accuracy_figure(_by_seed(results), titles, _split(results)), "accuracy of every seed"))
    parts += [f"<h2>{_COST}</h2>", _as_html(cost_table(results))]
    if results.curves:
        parts += ["<h2>Held-out curves</h2>", _picture(curves_figure(_curves(results), titles), "held-out curves")]
    for method, path in results.pictures.items():
        data = base64.b64encode(path.read_bytes()).decode()
        parts += [
            f"<h2>Reconstructions, {html.escape(results.titles[method])}</h2>",
            f'<img class=panel alt="reconstructions" src="data:image/png;base64,{data}">',
        ]
    if results.missing:
        parts += ["<h2>Not done</h2>", "<ul>", *(f"<li>{html.escape(name)}</li>" for name in results.missing), "</ul>"]
    lines = "".join(f"<p>{html.escape(name)}<br><code>{html.escape(line)}</code></p>" for name, line in commands(rows))
    parts.append(f"<details><summary>The exact command of each row</summary>{lines}</details>")
    head = f'<meta charset="utf-8"><title>What does masking buy?</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _accuracies_as_html(results: Results) -> str:
    """The accuracy table as HTML; the best mean of each line is bold."""
    table = accuracy_table(results)
    best = []
    for by_method in results.table.values():
        top = max(cell.mean for cell in by_method.values())
        best.append([method in by_method and by_method[method].mean == top for method in results.titles])
    return _as_html(table, best)


def _as_html(table: Table, best: Sequence[Sequence[bool]] = ()) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table[0])
    body = []
    for number, line in enumerate(table[1:]):
        marks = [False, *best[number]] if best else [False] * len(line)
        cells = "".join(
            f"<td{' class=best' * mark}>{html.escape(cell)}</td>" for cell, mark in zip(line, marks, strict=True)
        )
        body.append(f"<tr>{cells}</tr>")
    return f"<div class=wide><table><tr>{head}</tr>{''.join(body)}</table></div>"


def _picture(figure: Figure, alt: str) -> str:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=130)
    return f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(drawn.getvalue()).decode()}">'


def _by_seed(results: Results) -> dict[str, dict[str, list[float]]]:
    return {
        key.label: {results.titles[method]: list(cell.per_seed.values()) for method, cell in by_method.items()}
        for key, by_method in results.table.items()
    }


def _curves(results: Results) -> dict[str, dict[str, Sequence[Sequence[tuple[float, float]]]]]:
    """Axis title -> curves; each pre-training has its own axis for its loss, all fine-tunings share one."""
    axes: dict[str, dict[str, Sequence[Sequence[tuple[float, float]]]]] = {}
    for (method, stage), by_metric in results.curves.items():
        metric = "val/loss" if stage == "pretrain" else "val/acc1"
        if metric in by_metric:
            title = f"{results.titles[method]}: {metric}" if stage == "pretrain" else "fine-tuning: val/acc1"
            axes.setdefault(title, {})[results.titles[method]] = by_metric[metric]
    return dict(sorted(axes.items(), key=lambda item: item[0].startswith("fine-tuning"), reverse=True))
