"""Find the run that `ckpt=last`, `ckpt=best` or `ckpt=PATH` names, and its saved settings.

A resumed run has the same directory and the saved settings. The command line can change those of `MAY_CHANGE`. It
cannot change the others or a whole group: weights, the optimiser's state and the order of the images belong to them.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitmae.errors import UserError
from vitmae.files import user_path
from vitmae.plain_files import read_yaml
from vitmae.runs.directory import read_summary
from vitmae.runs.reach import refuse_reach
from vitmae.runs.settings import saved_settings

_KINDS = ("last", "best")

MAY_CHANGE = (
    "trainer",  # length, devices, precision, accumulation, clipping, how often something happens
    "logger",
    "checkpoint",
    "probe",
    "panel",
    "compile",
    "on_nonfinite",
    "runs",
    "data.batch_size",
    "data.num_workers",
    "data.on_error",
    "data.path",  # the same images in another place
    "model.optimizer.base_lr",
    "model.optimizer.min_lr",
    "model.optimizer.warmup_epochs",
    "model.optimizer.weight_decay",
    "model.optimizer.betas",
    "model.optimizer.momentum",
)
"""Settings that a resumed run may change, alone or with all that is in them."""

_REASONS = {
    "weights": "a resumed run loads its weights: leave it out",
    "weights_min_match": "a resumed run loads its weights: leave it out",
    "ema_decay": "the average of the weights is the run's: leave it out",
}


@dataclass(frozen=True)
class Resumption:
    """A run to resume.

    Attributes:
        checkpoint: the file, absolute; None for a run without one yet, which starts again.
        settings: as they were saved, plain values.
        directory: of the run; None for a checkpoint file alone, which gets a new directory.
        overrides: the single settings of the command line.
    """

    checkpoint: Path | None
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
    return _newest(ckpt, runs, _by_key(overrides)) if ckpt in _KINDS else _of_path(user_path(ckpt))


def find_resumption(ckpt: str, runs: Path, overrides: Sequence[str], trust: Sequence[str] = ()) -> Resumption:
    """Find the run that a `ckpt` setting names, and its settings.

    Args:
        ckpt: see `find_checkpoint`.
        runs: see `find_checkpoint`.
        overrides: the other words of the command line, as `key=value`.
        trust: classes that the saved settings may build, besides those of `vitmae.classes`.

    Raises:
        UserError: there is no such checkpoint, its settings build a class that they may not build or reach beyond the
            run, or an override names another group than the run has.
    """
    checkpoint, directory = None, _begun(ckpt, runs, overrides)
    if directory is not None:
        settings = _settings_in(directory, trust)
    else:
        checkpoint = find_checkpoint(ckpt, runs, overrides)
        settings, directory = settings_of(checkpoint, trust)
    file = directory / "config.yaml" if directory else checkpoint
    assert file is not None
    refuse_reach(settings, file, directory, overrides, starts_again=checkpoint is None)
    if directory is None:
        settings["runs"] = str(runs)  # the new run's directory is where the user says, not where the file says
    choices = settings.get("choices")
    if not isinstance(choices, Mapping):
        raise UserError(f"{file} is damaged: it has no choices; restore it")
    single = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key not in choices:
            single.append(override)
        elif not _agrees(choices[key], value):
            has = f"{key}={_text(choices[key])}"
            raise UserError(f"{override}: the run has {has}, which stays: leave it out, or start without ckpt=")
    return Resumption(checkpoint, settings, directory, single)


def _begun(ckpt: str, runs: Path, overrides: Sequence[str]) -> Path | None:
    """The directory of a run that ended before its first checkpoint, if `ckpt` names one: it starts again.

    "last" names one if it was interrupted later than any other run was saved. A run that is not recorded as interrupted
    may be running.
    """
    if ckpt not in _KINDS:
        directory = user_path(ckpt).resolve()
        return directory if _has_no_checkpoint(directory) else None
    given = _by_key(overrides)
    found = [path for path in runs.glob("**/summary.json") if _has_no_checkpoint(path.parent)]
    interrupted = [path for path in found if read_summary(path.parent).get("state") == "interrupted"]
    matching = [path for path in interrupted if _matches(path.parent, given)]
    if ckpt != "last" or not matching:
        return None
    newest = max(matching, key=_age_key)
    saved = [path for path in runs.glob("**/checkpoints/last.ckpt") if _matches(path.parent.parent, given)]
    return newest.parent.resolve() if all(_age_key(path) < _age_key(newest) for path in saved) else None


def _has_no_checkpoint(directory: Path) -> bool:
    """Whether a directory is that of a run that has no `last.ckpt` yet; a finished run has lost it."""
    has_run = os.path.isfile(directory / "summary.json") and os.path.isfile(directory / "config.yaml")
    if not has_run or (directory / "checkpoints" / "last.ckpt").exists():
        return False
    return read_summary(directory).get("state") != "finished"


def _age_key(path: Path) -> int:
    return path.stat().st_mtime_ns


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    return dict(override.split("=", 1) for override in overrides if "=" in override and override[0].isalpha())


def _facts(directory: Path) -> dict[str, Any]:
    """What a command line can ask of a run: its name, and the file of each group."""
    summary = read_summary(directory)
    return {**summary.get("choices", {}), "name": summary.get("name")}


def _matches(directory: Path, given: Mapping[str, str]) -> bool:
    facts = _facts(directory)
    return all(_agrees(facts[key], value) for key, value in given.items() if key in facts)


def settings_of(checkpoint: Path, trust: Sequence[str] = ()) -> tuple[dict[str, Any], Path | None]:
    """The saved settings of a checkpoint's run, and its directory; None for a checkpoint outside a run.

    Raises:
        UserError: they are damaged, or build a class that they may not build.
    """
    directory = checkpoint.parent.parent
    if (directory / "config.yaml").is_file():
        return _settings_in(directory, trust), directory
    from vitmae.runs.checkpoint_file import read_checkpoint

    return saved_settings(read_checkpoint(checkpoint)["vitmae_config"], checkpoint, trust), None


def _settings_in(directory: Path, trust: Sequence[str]) -> dict[str, Any]:
    file = directory / "config.yaml"
    return saved_settings(read_yaml(file), file, trust)


def changed_settings(saved: Mapping[str, Any], settings: Mapping[str, Any], checkpoint: Path) -> dict[str, str]:
    """By name, the settings that a resumed run changes, as "old -> new".

    Args:
        saved: the settings of the run.
        settings: those of its continuation.
        checkpoint: for the message.

    Raises:
        UserError: one has changed that must stay.
    """
    before, now = dict(_leaves(saved)), dict(_leaves(settings))
    changes = {}
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name, "not set"), now.get(name, "not set")
        if old == new or name in ("ckpt", "trust"):
            continue
        if not any(f"{name}.".startswith(f"{place}.") for place in MAY_CHANGE):
            reason = _REASONS.get(name.rpartition(".")[2])
            if reason:
                raise UserError(f"{name}={_text(new)} has no effect: {reason}")
            raise UserError(
                f"{name}={_text(new)}: the run has {_text(old)}, which stays: leave it out, or start a new run from "
                f"its weights with model.weights={checkpoint}"
            )
        changes[name] = f"{_text(old)} -> {_text(new)}"
    return changes


def _leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of each setting, in the order of the file."""
    for key, value in node.items():
        name = f"{path}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        elif not name.startswith("choices"):
            yield name, value


def _newest(kind: str, runs: Path, given: Mapping[str, str]) -> Path:
    """The newest checkpoint of the runs that have the given name and groups."""
    conditions: list[str] = []
    for path in sorted(runs.glob(f"**/checkpoints/{kind}.ckpt"), key=_age_key, reverse=True):
        if _matches(path.parent.parent, given):
            return path.resolve()
        conditions = [f"{key}={value}" for key, value in given.items() if key in _facts(path.parent.parent)]
    which = f" with {' '.join(conditions)}" if conditions else ""
    raise UserError(f"ckpt={kind}: no run below {runs}{which} has a {kind}.ckpt: give a path, or leave ckpt= out")


def _of_path(path: Path) -> Path:
    """The checkpoint at its own path, or in its run's directory."""
    is_run = os.path.isdir(path)  # unlike `Path.is_dir`, it raises nothing for a name that is too long
    checkpoint = path / "checkpoints" / "last.ckpt" if is_run else path
    if not os.path.isfile(checkpoint):
        raise UserError(f"ckpt={path}: there is no {'checkpoints/last.ckpt in it' if is_run else 'such file'}")
    return checkpoint.resolve()


def _agrees(choice: Any, value: str) -> bool:
    return _text(choice) == value.replace(" ", "")


def _text(choice: Any) -> str:
    """A group's choice as it is written on the command line."""
    if isinstance(choice, list):
        return "[" + ",".join(map(str, choice)) + "]"
    return "null" if choice is None else str(choice)
