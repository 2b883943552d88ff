"""Find the run that `ckpt=last`, `ckpt=best` or `ckpt=PATH` names, and its saved settings.

A resumed run has the same directory and the saved settings. The command line can change single settings. It cannot
change a whole group, because the weights and the optimiser's state belong to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vitmae.errors import UserError
from vitmae.runs.directory import read_summary
from vitmae.runs.settings import saved_settings

_KINDS = ("last", "best")


@dataclass(frozen=True)
class Resumption:
    """A run to resume.

    Attributes:
        checkpoint: the file, absolute.
        settings: as they were saved, plain values.
        directory: of the run; None for a checkpoint file alone, which gets a new directory.
        overrides: the single settings of the command line.
    """

    checkpoint: Path
    settings: dict[str, Any]
    directory: Path | None
    overrides: list[str]


def find_checkpoint(ckpt: str, runs: Path, overrides: Sequence[str] = ()) -> Path:
    """The absolute path of the checkpoint that a `ckpt` setting names; the file is not opened.

    Args:
        ckpt: "last" or "best" of the run that was saved last, or the path of a checkpoint or of a run directory.
        runs: where "last" and "best" look, at any depth.
        overrides: the other words of the command line, as `key=value`; "last" and "best" find a run with the same
            name and groups.

    Raises:
        UserError: there is no such checkpoint.
    """
    given = dict(override.split("=", 1) for override in overrides if "=" in override and override[0].isalpha())
    return _newest(ckpt, runs, given) if ckpt in _KINDS else _of_path(Path(ckpt).expanduser())


def find_resumption(ckpt: str, runs: Path, overrides: Sequence[str], trust: Sequence[str] = ()) -> Resumption:
    """Find the run that a `ckpt` setting names, and its settings.

    Args:
        ckpt: see `find_checkpoint`.
        runs: see `find_checkpoint`.
        overrides: the other words of the command line, as `key=value`.
        trust: classes that the saved settings may build, besides those of `vitmae.classes`.

    Raises:
        UserError: there is no such checkpoint, its settings build a class that they may not build, or an override names
            another group than the run has.
    """
    checkpoint = find_checkpoint(ckpt, runs, overrides)
    directory: Path | None = checkpoint.parent.parent
    if directory and (directory / "config.yaml").is_file():
        settings: Any = OmegaConf.to_container(OmegaConf.load(directory / "config.yaml"))
    else:
        from vitmae.runs.checkpoint_file import read_checkpoint

        directory, settings = None, read_checkpoint(checkpoint)["vitmae_config"]
    settings = saved_settings(settings, directory / "config.yaml" if directory else checkpoint, trust)
    choices = settings["choices"]
    single = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key not in choices:
            single.append(override)
        elif not _agrees(choices[key], value):
            has = f"{key}={_text(choices[key])}"
            raise UserError(f"{override}: the run has {has}, which stays: leave it out, or start without ckpt=")
    return Resumption(checkpoint, settings, directory, single)


def _newest(kind: str, runs: Path, given: Mapping[str, str]) -> Path:
    """The newest checkpoint of the runs that have the given name and groups."""
    found = sorted(runs.glob(f"**/checkpoints/{kind}.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    conditions: list[str] = []
    for path in found:
        summary = read_summary(path.parent.parent)
        facts = {**summary.get("choices", {}), "name": summary.get("name")}
        conditions = [f"{key}={value}" for key, value in given.items() if key in facts]
        if all(_agrees(facts[key], value) for key, value in given.items() if key in facts):
            return path.resolve()
    which = f" with {' '.join(conditions)}" if conditions else ""
    raise UserError(f"ckpt={kind}: no run below {runs}{which} has a {kind}.ckpt: give a path, or leave ckpt= out")


def _of_path(path: Path) -> Path:
    """The checkpoint at its own path, or in its run's directory."""
    checkpoint = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not checkpoint.is_file():
        raise UserError(f"ckpt={path}: there is no {'checkpoints/last.ckpt in it' if path.is_dir() else 'such file'}")
    return checkpoint.resolve()


def _agrees(choice: Any, value: str) -> bool:
    return _text(choice) == value.replace(" ", "")


def _text(choice: Any) -> str:
    """A group's choice as it is written on the command line."""
    if isinstance(choice, list):
        return "[" + ",".join(choice) + "]"
    return "null" if choice is None else str(choice)
