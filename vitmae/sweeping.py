"""A sweep on the command line: its jobs, their names, the directory that the same command resumes, and its end."""

import json
import shlex
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from vitmae.composition import value_of
from vitmae.runs.exit import FAULT, report
from vitmae.runs.launch import current_launch
from vitmae.runs.sweep import Sweep


class SweepStart(Callback):
    """Hydra's callback at the start of a sweep.

    Attributes:
        sweep: of this process; Hydra builds the callback, and from the settings alone.
    """

    sweep: ClassVar[Sweep]

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the choices of the groups known, which the name of the directory needs, and record the sweep there."""
        HydraConfig.instance().set_config(config)
        if not current_launch().separate:
            self.sweep.begin(Path(config.hydra.sweep.dir))


def ended_sweep() -> Path | None:
    """The directory of the sweep that has just ended; None after a single run."""
    settings = cast(DictConfig | None, HydraConfig.instance().cfg)
    directory = None
    if settings is not None and settings.hydra.mode == RunMode.MULTIRUN:
        directory = Path(settings.hydra.sweep.dir)
    HydraConfig.instance().cfg = None
    return directory


def _parsed(overrides: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(overrides))


def jobs_of(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep; of none if the sweeper draws values, which are not known before."""
    choices = []
    for override in _parsed([word for word in overrides if not word.startswith("hydra")]):
        if not override.is_sweep_override():
            choices.append([str(override.input_line)])
        elif override.is_discrete_sweep():
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            return []
    return [list(words) for words in product(*choices)]


def short_names(overrides: Sequence[str]) -> list[str]:
    """An override for a sweep: the names of its jobs show only the settings that differ."""
    fixed = [override.key_or_group for override in _parsed(overrides) if not override.is_sweep_override()]
    return [f"hydra.job.config.override_dirname.exclude_keys={json.dumps(fixed)}"]


def resumed_sweep(sweep: Sweep, overrides: Sequence[str]) -> list[str]:
    """An override for a sweep that was interrupted: its directory.

    A sweeper that draws values, and ranks that srun or torchrun started side by side, begin a new sweep.
    """
    keys = {override.partition("=")[0] for override in overrides}
    if {"hydra.sweep.dir", "hydra/sweeper"} & keys or current_launch().separate:
        return []
    if (directory := sweep.find(Path(value_of("runs", overrides) or "runs"))) is None:
        return []
    print(f"resuming the sweep in {directory}; for a new one, give it a name: name=…", flush=True)
    return [f"hydra.sweep.dir='{directory}'"]


def conclude(sweep: Sweep, directory: Path, end_sweep: Callable[[Path], bool], code: int) -> int:
    """Write the table of a sweep, say how to resume it if a job is not finished, and return the exit code."""
    try:
        finished = end_sweep(directory)
        sweep.end(directory, finished and code == 0)
    except Exception as error:
        return report(error)
    if not finished or code != 0:
        command = shlex.join(["python", "-m", "vitmae.train", *sweep.words])
        print(f"\nthe same command resumes the sweep: {command}", flush=True)
    return 0 if finished else FAULT
