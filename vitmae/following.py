"""The ranks of a training run follow the first: the words that Hydra reads on each rank.

first rank       the user's words; it makes the directory, and saves the settings and the checkpoint in it
another rank     none of the user's settings, but those that the first rank has saved: no rank looks for a
checkpoint or composes settings by itself, so ranks cannot disagree
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from vitmae.composition import split_arguments, store_settings
from vitmae.errors import UserError
from vitmae.lease import take
from vitmae.runs.agreement import Agreement, decided_settings
from vitmae.runs.directory import lease_of
from vitmae.runs.exit import short
from vitmae.runs.launch import Launch

RESUMED = "resumed_run"
"""The name under which Hydra finds saved settings."""


def follow(arguments: list[str], launch: Launch) -> list[str]:
    """The words of another rank than the first: the directory and the settings come from the first, which saved them.

    Raises:
        UserError: the environment names a rank, and no known launcher has started it.
    """
    flags, overrides = split_arguments(arguments)
    if launch.separate:
        directory = str(agreement(launch, overrides).ask())
    elif (directory := value_of("hydra.run.dir", overrides)) == "":
        raise UserError(f"the environment says rank {launch.rank}: start several processes with srun or torchrun")
    store_settings(RESUMED, decided_settings(Path(directory)))
    of_hydra = [override for override in overrides if override.startswith("hydra.")]
    return [*flags, f"--config-name={RESUMED}", *of_hydra, f"hydra.run.dir='{directory}'"]


def agreement(launch: Launch, overrides: Sequence[str]) -> Agreement:
    """How the ranks of this start agree: all processes with one command line meet in the folder of all runs."""
    return _agreement(launch, value_of("runs", overrides))


@cache
def _agreement(launch: Launch, runs: str) -> Agreement:
    return Agreement(launch, Path(runs or "runs").absolute())


def take_named_directory(arguments: Sequence[str]) -> None:
    """Take the run directory that a command line names, before Hydra writes to it; a new one need not be taken yet.

    Raises:
        UserError: another process writes there.
    """
    flags, overrides = split_arguments(arguments)
    named = value_of("hydra.run.dir", overrides)
    starts_run = all(flag.startswith(("--config-", "-c")) or not flag.startswith("-") for flag in flags)
    if named and "${" not in named and starts_run:
        directory = Path(named).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        take(lease_of(directory, 0), str(short(directory)))


def value_of(key: str, overrides: Sequence[str]) -> str:
    """The last value that the command line gives a setting, as text; empty if it gives none."""
    values = [override.partition("=")[2] for override in overrides if override.startswith(f"{key}=")]
    return values[-1].strip("'\"") if values else ""
