"""One table of all jobs of a sweep, read from the files in their directories; a job may have failed."""

import csv
from io import StringIO
from pathlib import Path

from omegaconf import OmegaConf

from vitmae.atomic import atomic_write
from vitmae.runs.directory import read_summary
from vitmae.tables import as_markdown, as_text

_OVERRIDES = Path(".hydra", "overrides.yaml")  # Hydra writes them as a job starts
_METRICS = {"val/loss": "val/loss", "val/acc1": "val/acc1", "probe/knn": "knn"}


def read_sweep(directory: Path) -> list[dict[str, str]]:
    """The jobs of a sweep in their order: the settings that differ between them, the final metrics, the state."""
    jobs = sorted((path.parent.parent for path in directory.glob(f"*/{_OVERRIDES}")), key=_number)
    overrides = [_overrides(job) for job in jobs]
    given_keys = dict.fromkeys(key for job in overrides for key in job)
    swept = [key for key in given_keys if len({job.get(key) for job in overrides}) > 1]
    rows = []
    for job, given in zip(jobs, overrides, strict=True):
        summary = read_summary(job)
        metrics = summary.get("metrics", {})
        row = {"job": job.name.split("-")[0], **{key: given.get(key, "") for key in swept or given}}
        row |= {column: f"{metrics[name]:.5g}" if name in metrics else "" for name, column in _METRICS.items()}
        rows.append(row | {"state": summary.get("state", "not started"), "error": summary.get("error", "")})
    return rows


def report_sweep(directory: Path) -> bool:
    """Write sweep.csv and sweep.md to a sweep's directory, print the table, and return whether all jobs finished."""
    rows = read_sweep(directory)
    if not rows:
        return True
    columns = [column for column in rows[0] if column not in ("error", "val/acc1") or any(row[column] for row in rows)]
    table = [columns, *([row[column] for column in columns] for row in rows)]
    lines = StringIO()
    csv.writer(lines, lineterminator="\n").writerows(table)
    for name, text in (("sweep.csv", lines.getvalue()), ("sweep.md", as_markdown(table))):
        with atomic_write(directory / name) as file:
            file.write(text.encode())
    print(f"{len(rows)} jobs in {directory}", as_text(table), sep="\n\n")
    return all(row["state"] == "finished" for row in rows)


def _number(job: Path) -> tuple[int, str]:
    """The sort key of a job's folder: the number at the start of its name."""
    number = job.name.split("-")[0]
    return (int(number) if number.isdigit() else 0, job.name)


def _overrides(job: Path) -> dict[str, str]:
    """Value by setting, as the job's command line gives them."""
    given = OmegaConf.load(job / _OVERRIDES)
    return {key: value for key, _, value in (str(override).partition("=") for override in given)}
