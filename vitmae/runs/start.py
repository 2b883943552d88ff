"""How a run begins this time: new, again without a checkpoint, resumed by the user, or by a scheduler or a sweep."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vitmae.errors import UserError
from vitmae.runs.directory import RunDirectory
from vitmae.runs.launch import Launch
from vitmae.runs.resume import changed_settings, settings_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """One start of a run.

    Attributes:
        run: its directory.
        launch: how this process was started.
        overrides: the words of the command line.
        ckpt: the checkpoint that it resumes from; None: it begins with the first step.
        is_named: whether the user named that checkpoint. A requeued job or a sweep finds its own, and its words are
            those of its first start.
        changes: by name, the settings that differ from those of the saved run, as "old -> new".
    """

    run: RunDirectory
    launch: Launch
    overrides: Sequence[str]
    ckpt: Path | None = None
    is_named: bool = False
    changes: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_nothing_left(self) -> bool:
        """Whether the run has finished, and the user changes nothing about it."""
        is_whole = self.is_named and self.ckpt == self.run.last and not self.changes
        return is_whole and self.run.summary().get("state") == "finished"

    def save_early(self, settings: Mapping[str, Any]) -> None:
        """Before the imports, which take seconds: save the settings of a new run, so that `ckpt=` starts it again."""
        if not self.run.config.exists():
            self.run.save_config(OmegaConf.to_yaml(dict(settings)))
        if self.ckpt is None and self.run.is_writer:
            self.run.metrics.unlink(missing_ok=True)  # of a start that left no checkpoint

    def save(self, settings: Mapping[str, Any]) -> None:
        """Save the settings and the command line."""
        self.run.save_config(OmegaConf.to_yaml(dict(settings)))
        self.run.save_command(["python", "-m", "vitmae.train", *self.overrides])

    def share(self, settings: Mapping[str, Any]) -> None:
        """On the first rank, save what the other ranks follow: the settings and the checkpoint."""
        ckpt = None if self.ckpt is None else str(self.ckpt)
        self.run.save_start(OmegaConf.to_yaml({**settings, "ckpt": ckpt}))


def find_start(
    run: RunDirectory, launch: Launch, overrides: Sequence[str], settings: Mapping[str, Any], in_sweep: bool
) -> Start:
    """Find out how the run begins; on the first rank, prepare its directory, unless nothing is left to train.

    Args:
        run: its directory.
        launch: how this process was started.
        overrides: the words of the command line.
        settings: `ckpt` names a checkpoint, or the directory of a run that ended before its first one.
        in_sweep: whether the run is a job of a sweep, which may have begun it before.

    Raises:
        UserError: a setting has changed that must stay, or the directory holds another run.
    """
    ckpt = Path(settings["ckpt"]) if settings["ckpt"] else None
    if launch.rank > 0:  # the first rank has decided
        return Start(run, launch, overrides, ckpt)
    is_resumed = in_sweep or (ckpt is not None and run.path in (ckpt, *ckpt.parents))
    if ckpt == run.path:
        ckpt = None
    changes = {} if ckpt is None else _changes(ckpt, settings, is_resumed)
    start = Start(run, launch, overrides, ckpt, is_named=ckpt is not None, changes=changes)
    if start.has_nothing_left:
        return start
    is_requeued = run.start(launch, name=settings["name"], choices=settings["choices"], is_resumed=is_resumed)
    if (is_requeued or in_sweep) and run.last.exists():
        return Start(run, launch, overrides, run.last)
    return start


def _changes(ckpt: Path, settings: Mapping[str, Any], is_resumed: bool) -> dict[str, str]:
    """What a resumed run changes; the name counts in its own directory only.

    Raises:
        UserError: a setting has changed that must stay.
    """
    saved, _ = settings_of(ckpt, settings["trust"])
    name = saved.get("name")
    if settings["name"] != name and is_resumed:
        raise UserError(f"name={settings['name']} has no effect: the run already has the name {name}: leave it out")
    return changed_settings({**saved, "name": settings["name"]}, settings, ckpt)
