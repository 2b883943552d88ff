"""The words that Hydra reads on each rank of a training run: the other ranks follow the first.

first rank       the user's words; it makes the directory, and saves the settings and the checkpoint in it
another rank     none of the user's settings, but those that the first rank has saved

No other rank looks for a checkpoint or composes settings by itself, so ranks cannot disagree.
"""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from vitmae.composition import SWEEP_FLAGS, quoted, split_arguments, store_settings, trusted_names, value_of
from vitmae.errors import UserError
from vitmae.lease import Watch, take
from vitmae.runs.agreement import Agreement, decided_settings
from vitmae.runs.directory import lease_of
from vitmae.runs.exit import short
from vitmae.runs.launch import Launch, current_launch
from vitmae.runs.resume import find_resumption

_RESUMED = "resumed_run"
"""The name under which Hydra finds saved settings."""


def words_for_hydra(arguments: list[str]) -> list[str]:
    """The words that Hydra reads: of the first rank its own, with `ckpt=` looked up; of another what the first decided.

    Raises:
        UserError: see `find_resumption`; several ranks cannot sweep; another process writes to the directory.
    """
    launch = current_launch()
    if launch.rank > 0:
        return _follow(arguments, launch)
    if launch.separate and SWEEP_FLAGS & set(arguments):
        raise UserError("-m: srun or torchrun has started several processes: start a sweep as one, which starts others")
    words = _resume(arguments)
    _take_named_directory(words)
    return words


def _resume(arguments: list[str]) -> list[str]:
    """Replace `ckpt=last|best|PATH` by the path of the checkpoint, and the defaults by the settings of its run.

    For a run that ended before its first checkpoint, it is the path of the run's directory.

    Raises:
        UserError: the command line sweeps, or no checkpoint is found, see `vitmae.runs.resume.find_resumption`.
    """
    flags, overrides = split_arguments(arguments)
    ckpt = value_of("ckpt", overrides)
    if not any(word.startswith("ckpt=") for word in overrides) or ckpt == "null":
        return arguments
    if not ckpt:
        raise UserError(
            "ckpt= is empty: name a run directory or a checkpoint, last or best; leave it out to start a run"
        )
    if SWEEP_FLAGS & set(flags):
        raise UserError("-m: ckpt= resumes one run, which cannot be swept: leave -m or ckpt= out")
    others = [override for override in overrides if not override.startswith("ckpt=")]
    runs = Path(value_of("runs", overrides) or "runs")
    resumption = find_resumption(ckpt, runs, others, trusted_names(overrides))
    store_settings(_RESUMED, resumption.settings)
    place = []
    if resumption.directory is not None:
        place = [quoted(f"hydra.run.dir={resumption.directory}"), "hydra.output_subdir=null"]
    checkpoint = quoted(f"ckpt={resumption.checkpoint or resumption.directory}")
    return [*flags, f"--config-name={_RESUMED}", checkpoint, *resumption.overrides, *place]


def _follow(arguments: list[str], launch: Launch) -> list[str]:
    """The words of another rank than the first: the directory and the settings come from the first, which saved them.

    Raises:
        UserError: the environment names a rank, and no known launcher has started it.
    """
    flags, overrides = split_arguments(arguments)
    if launch.separate:
        directory = str(agreement(launch, overrides).ask())
    else:
        directory = value_of("hydra.run.dir", overrides)
        starter = Watch(lease_of(Path(directory), 0)).holder if directory else None
        if starter is None or starter.pid != os.getppid():  # else any folder could say what is built
            raise UserError(f"the environment says rank {launch.rank}: start several processes with srun or torchrun")
    store_settings(_RESUMED, decided_settings(Path(directory)))
    of_hydra = [override for override in overrides if override.startswith("hydra.")]
    return [*flags, f"--config-name={_RESUMED}", *of_hydra, f"hydra.run.dir='{directory}'"]


def agreement(launch: Launch, overrides: Sequence[str]) -> Agreement:
    """How the ranks of this start agree: all processes with one command line meet in the folder of all runs."""
    return _agreement(launch, value_of("runs", overrides))


@cache
def _agreement(launch: Launch, runs: str) -> Agreement:
    return Agreement(launch, Path(runs or "runs").absolute())


def _take_named_directory(arguments: Sequence[str]) -> None:
    """Take the run directory that a command line names, before Hydra writes to it; a new one need not be taken yet.

    Raises:
        UserError: another process writes there.
    """
    flags, overrides = split_arguments(arguments)
    named = value_of("hydra.run.dir", overrides)
    starts_run = all(flag.startswith(("--config-", "-cn", "-cp", "-cd")) or not flag.startswith("-") for flag in flags)
    if named and "${" not in named and starts_run:
        directory = Path(named).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        take(lease_of(directory, 0), str(short(directory)))
