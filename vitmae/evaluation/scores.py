"""The result of an evaluation: one record per number, written as JSON, Markdown and CSV."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitmae.atomic import atomic_write
from vitmae.errors import UserError
from vitmae.probes.confidence import ProbeResult, mean_std
from vitmae.tables import Table, as_markdown

SHARES = ("accuracy", "mean IoU")
"""Metrics in [0, 1], which a table shows in per cent."""
COLUMNS = ("encoder", "probe", "pooling", "setting", "metric", "value", "95 %", "images")


@dataclass(frozen=True)
class Score:
    """One number of an evaluation.

    Attributes:
        encoder: "trained" or "untrained".
        probe: knn, linear, logistic, fewshot, attentive, dense, collapse or classifier.
        pooling: cls, avg or patches; for the classifier, the pooling of its head.
        metric: accuracy, mean IoU, RankMe or feature std.
        value: the number; in [0, 1] for accuracy and mean IoU.
        interval: the 95 % interval; None: the metric has none.
        num_images: the number of scored images.
        setting: the hyper-parameters, fixed or chosen on the validation images.
        validation: candidate -> its value on the validation images; empty if nothing was chosen.
        per_seed: the value of each seed, if there are several; a table shows their standard deviation.
        is_chosen: whether this is the best of several reported candidates on the validation images.
    """

    encoder: str
    probe: str
    pooling: str
    metric: str
    value: float
    num_images: int
    interval: tuple[float, float] | None = None
    setting: Mapping[str, float] = field(default_factory=dict)
    validation: Mapping[float, float] = field(default_factory=dict)
    per_seed: tuple[float, ...] = ()
    is_chosen: bool = False

    def cells(self) -> dict[str, str]:
        """Column -> text."""
        share = self.metric in SHARES
        setting = next((f"{name} {value:g}" for name, value in self.setting.items()), "")  # the first one varies
        value = f"{100 * self.value:.1f}" if share else f"{self.value:.4g}"
        if len(self.per_seed) > 1:
            value += f" ± {100 * mean_std(self.per_seed)[1]:.1f}"
        value += " %" if share else ""
        low_high = f"{100 * self.interval[0]:.1f} to {100 * self.interval[1]:.1f}" if self.interval else ""
        values = (
            self.encoder,
            self.probe,
            self.pooling,
            setting + " *" * self.is_chosen,
            self.metric,
            value,
            low_high,
            str(self.num_images),
        )
        return dict(zip(COLUMNS, values, strict=True))


def of_probe(encoder: str, result: ProbeResult, *, is_chosen: bool = False) -> Score:
    """The score of a probe's result."""
    return Score(
        encoder,
        result.probe,
        result.pooling,
        "accuracy",
        result.accuracy,
        result.num_images,
        result.interval,
        dict(result.setting),
        dict(result.validation),
        result.per_seed,
        is_chosen,
    )


def as_table(scores: Sequence[Score]) -> Table:
    """A header and one line per score."""
    return [COLUMNS, *(list(score.cells().values()) for score in scores)]


def as_csv(scores: Sequence[Score]) -> str:
    """One line per score, with unrounded numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("encoder", "probe", "pooling", "setting", "metric", "value", "low", "high", "images", "chosen"))
    for score in scores:
        low, high = score.interval or ("", "")
        writer.writerow(
            (
                score.encoder,
                score.probe,
                score.pooling,
                json.dumps(dict(score.setting)),
                score.metric,
                score.value,
                low,
                high,
                score.num_images,
                score.is_chosen,
            )
        )
    return text.getvalue()


def write_scores(path: Path, scores: Sequence[Score], about: Mapping[str, Any]) -> list[Path]:
    """Write scores as JSON, and beside it as Markdown and CSV.

    Args:
        path: the JSON file.
        scores: in the order of the table.
        about: further facts for a reader, as plain values.

    Returns:
        The three files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # nan becomes null, because JSON has no nan
    finite = [asdict(score) | {"value": score.value if math.isfinite(score.value) else None} for score in scores]
    content = {**about, "scores": finite}
    texts = {".json": json.dumps(content, indent=2), ".md": as_markdown(as_table(scores)), ".csv": as_csv(scores)}
    paths = [path.with_suffix(suffix) for suffix in reversed(texts)]  # JSON last: it marks the end
    for file in paths:
        with atomic_write(file) as stream:
            stream.write(texts[file.suffix].encode())
    return paths[::-1]


def read_scores(path: Path) -> tuple[list[Score], dict[str, Any]]:
    """(scores, about) of a JSON file that `write_scores` wrote.

    Raises:
        UserError: the file is something else.
    """
    try:
        content = json.loads(path.read_text())
        scores = [
            Score(
                **{
                    **score,
                    "interval": tuple(score["interval"]) if score["interval"] else None,
                    "value": math.nan if score["value"] is None else score["value"],
                    "per_seed": tuple(score["per_seed"]),
                }
            )
            for score in content.pop("scores")
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not an evaluation ({error}): remove it, and run the evaluation again") from error
    return scores, content
