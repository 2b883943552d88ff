"""Loggers of numbers and pictures: metrics.csv always, and W&B or TensorBoard where a config names them.

Each logger is built with the run's directory, and writes below that directory only.
"""

import csv
import io
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from vitmae.atomic import atomic_write
from vitmae.errors import UserError
from vitmae.runs.directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MetricsFile(Logger):
    """metrics.csv: one row for each step at which something was logged, one column for each metric.

    Every call writes to the file before it returns, so a killed process loses at most its last row. A resumed run
    repeats the steps after its checkpoint: at its first row it removes all later rows, so that no step is in the file
    twice.

    Args:
        run: the directory of the file.
    """

    def __init__(self, run: RunDirectory) -> None:
        super().__init__()
        self._path = run.metrics
        self._columns: list[str] = []
        self._last: dict[str, str] = {}
        self._last_start = 0  # where in the file the last row begins

    @property
    def name(self) -> str:
        """The file's name."""
        return self._path.name

    @property
    def version(self) -> None:
        """None: a run has one such file."""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's config.yaml holds the settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write a row, or complete the last row if it is of the same step.

        Args:
            metrics: scalars by name.
            step: the optimiser step.
        """
        row = {"step": str(step or 0)} | {key: f"{float(value):.9g}" for key, value in metrics.items()}
        if not self._columns:
            columns, rows = read_metrics(self._path)
            self._columns = columns or ["step"]
            self._write([earlier for earlier in rows if int(earlier["step"]) <= int(row["step"])])
        is_same_step = row["step"] == self._last.get("step")
        if is_same_step:
            row = self._last | row
        if new := [key for key in row if key not in self._columns]:
            self._columns += new
            rows = read_metrics(self._path)[1]
            self._write([*(rows[:-1] if is_same_step else rows), row])
            return
        with open(self._path, "r+b") as file:
            self._last, self._last_start = row, file.seek(*((self._last_start,) if is_same_step else (0, io.SEEK_END)))
            file.write(self._line(row))
            file.truncate()

    def _write(self, rows: list[dict[str, str]]) -> None:
        lines = [self._line({column: column for column in self._columns}), *(self._line(row) for row in rows)]
        with atomic_write(self._path) as file:
            file.write(b"".join(lines))
        self._last, self._last_start = (rows[-1] if rows else {}), sum(map(len, lines[:-1]))

    def _line(self, row: Mapping[str, str]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([row.get(column, "") for column in self._columns])
        return text.getvalue().encode()


def read_metrics(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and rows of a metrics.csv as text, without an incomplete last row."""
    if not path.exists():
        return [], []
    whole_lines = path.read_text().rpartition("\n")[0]
    reader = csv.DictReader(io.StringIO(whole_lines))
    rows = list(reader)
    return list(reader.fieldnames or []), rows


def tensorboard(run: RunDirectory) -> TensorBoardLogger:
    """TensorBoard's event files, in ``tensorboard/`` of the run.

    Raises:
        UserError: tensorboard is not installed.
    """
    try:
        return TensorBoardLogger(save_dir=run.path, name="tensorboard", version="")
    except ModuleNotFoundError:
        raise UserError('logger=tensorboard needs the package tensorboard: pip install "vitmae[tensorboard]"') from None


@rank_zero_only
def log_figure(loggers: Iterable[Logger], key: str, figure: "Figure", step: int) -> None:
    """Log a matplotlib figure with every logger that shows pictures, on the first rank only.

    Args:
        loggers: of the trainer.
        key: such as ``val/reconstruction``.
        figure: is not closed.
        step: the optimiser step.
    """
    from vitmae.training.wandb_logger import Wandb

    for logger in loggers:
        if isinstance(logger, Wandb):
            logger.log_figure(key, figure, step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(key, figure, step, close=False)
