"""What an evaluation says: one record per number, and a table of them."""

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
"""Metrics that are shares, which a table shows in per cent."""
COLUMNS = ("encoder", "probe", "pooling", "setting", "metric", "value", "95 %", "images")


@dataclass(frozen=True)
class Score:
    """One number.

    Attributes:
        encoder: "trained" or "untrained".
        probe: knn, linear, logistic, fewshot, attentive, dense, collapse or classifier.
        pooling: cls, avg or patches; what the classifier's head reads.
        metric: accuracy, mean IoU, RankMe or feature std.
        value: in [0, 1] for the first two.
        interval: 95 %, where there is one.
        num_images: that it was measured on.
        setting: hyper-parameters behind it, fixed or chosen on the validation images.
        validation: what each candidate reached there; empty where nothing was chosen.
        per_seed: where several draws were made; a table shows their standard deviation.
        is_chosen: of the candidates that are all reported, the one that is best on the validation images.
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
        """As text, by column."""
        share = self.metric in SHARES
        setting = next((f"{name} {value:g}" for name, value in self.setting.items()), "")  # the one that varies
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
    """A probe's own record, as a score."""
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
    """A header, and a line per score."""
    return [COLUMNS, *(list(score.cells().values()) for score in scores)]


def as_csv(scores: Sequence[Score]) -> str:
    """One line per score, numbers as they are."""
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
        about: what else a reader needs to know, as plain values.

    Returns:
        The three files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**about, "scores": [_plain(score) for score in scores]}
    texts = {".json": json.dumps(content, indent=2), ".md": as_markdown(as_table(scores)), ".csv": as_csv(scores)}
    paths = [path.with_suffix(suffix) for suffix in reversed(texts)]  # the JSON file, which is looked for, last
    for file in paths:
        with atomic_write(file) as stream:
            stream.write(texts[file.suffix].encode())
    return paths[::-1]


def read_scores(path: Path) -> tuple[list[Score], dict[str, Any]]:
    """What `write_scores` has written: the scores, and what was said about them.

    Raises:
        UserError: it is not such a file.
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
        raise UserError(f"{path} is no evaluation: {error}") from error
    return scores, content


def _plain(score: Score) -> dict[str, Any]:
    """Without nan, which JSON does not have."""
    return {**asdict(score), "value": score.value if math.isfinite(score.value) else None}
