"""One table for all jobs of a sweep, from what each left in its own directory: it needs no job to have ended well."""

import csv
import io
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vitmae.atomic import atomic_write
from vitmae.runs.directory import read_summary
from vitmae.tables import as_markdown

_OVERRIDES = Path(".hydra", "overrides.yaml")  # Hydra writes them as a job starts
_METRICS = {"val/loss": "val/loss", "val/acc1": "val/acc1", "probe/knn": "knn"}


def read_sweep(directory: Path) -> list[dict[str, str]]:
    """The jobs of a sweep in their order: the settings that differ between them, the final metrics, the state."""
    jobs = sorted((path.parent.parent for path in directory.glob(f"*/{_OVERRIDES}")), key=_number_of)
    overrides = [_overrides(job) for job in jobs]
    given_keys = dict.fromkeys(key for job in overrides for key in job)
    swept = [key for key in given_keys if len({job.get(key) for job in overrides}) > 1]
    rows = []
    for job, given in zip(jobs, overrides, strict=True):
        summary = read_summary(job)
        metrics = summary.get("metrics", {})
        row = {"job": job.name.split("-")[0], **{key: given.get(key, "") for key in swept or given}}
        row |= {column: _text(metrics.get(name)) for name, column in _METRICS.items()}
        rows.append(row | {"state": summary.get("state", "not started"), "error": summary.get("error", "")})
    return rows


def report_sweep(directory: Path) -> bool:
    """Write sweep.csv and sweep.md into a sweep's directory and print the table; False if a job did not finish."""
    rows = read_sweep(directory)
    if not rows:
        return True
    columns = [column for column in rows[0] if column not in ("error", "val/acc1") or any(row[column] for row in rows)]
    _write(directory / "sweep.csv", _as_csv(rows, columns))
    _write(directory / "sweep.md", _as_markdown(rows, columns))
    _print(rows, columns, directory)
    return all(row["state"] == "finished" for row in rows)


def _number_of(job: Path) -> tuple[int, str]:
    number = job.name.split("-")[0]
    return (int(number) if number.isdigit() else 0, job.name)


def _overrides(job: Path) -> dict[str, str]:
    given = OmegaConf.to_container(OmegaConf.load(job / _OVERRIDES))
    assert isinstance(given, list)
    return {key: value for key, _, value in (str(override).partition("=") for override in given)}


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.5g}"


def _as_csv(rows: list[dict[str, str]], columns: list[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _as_markdown(rows: list[dict[str, str]], columns: list[str]) -> str:
    return as_markdown([columns, *([row[column] for column in columns] for row in rows)])


def _print(rows: list[dict[str, str]], columns: list[str], directory: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=f"{len(rows)} jobs", caption=str(directory))
    for row in rows:
        table.add_row(*(row[column] for column in columns))
    Console().print(table)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
