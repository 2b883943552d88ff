"""One run, one directory: `runs/<date>/<time>-<name>/`.

    config.yaml         every setting as it was used, resolved to plain values
    commands.txt        each command line that worked on this run, with its time
    environment.json    code version, library versions, host, devices
    metrics.csv         every logged number
    checkpoints/        last.ckpt, best.ckpt
    figures/            pictures
    nonfinite/          steps whose loss or gradient was not finite, see `vitmae.replay`
    effects.txt         what took effect, read back from the built objects
    train.log           what was printed, with times
    traceback.txt       of faults
    summary.json        the state (running, finished, interrupted or failed), and the final metrics
    .start.yaml         what the first rank has decided for this start: the settings, and the checkpoint to resume
    .lease              the process that writes here now (`vitmae.lease`); `.lease.rank1` and so on: the other ranks

Only the first rank writes, but for `rank<n>.error`, `rank<n>.signal` and the leases. Files are replaced whole.
"""

import json
import os
import platform
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from vitmae.atomic import atomic_write, remove_parts
from vitmae.errors import UserError, first_line
from vitmae.lease import LEASE, is_held
from vitmae.plain_files import require_file
from vitmae.runs.launch import Launch

State = Literal["running", "finished", "interrupted", "failed"]
LAUNCHES, _MONTH_S = ".launches", 30 * 24 * 3600
"""The folder of what jobs leave for their other ranks and later attempts, in the folder of all runs."""
_PACKAGES = ("vitmae", "torch", "torchvision", "lightning", "timm", "hydra-core", "omegaconf", "numpy", "wandb")


def claim_directory(path: Path, launch: Launch, runs: Path) -> Path:
    """Create a run's directory, which no other run has; a later attempt of a job gets that of the earlier attempt.

    Args:
        path: of the directory; ``-2``, ``-3``, … is appended if it exists.
        launch: of this process, the first of its run: it tells the directory to the others.
        runs: the folder of all runs; `.launches/` in it records which directory a job has.
    """
    path, runs = path.resolve(), runs.resolve()
    if launch.key is None:
        return _make(path)
    launches = runs / LAUNCHES
    if launches.is_symlink():
        raise UserError(f"{launches} is a link: must be a folder; remove the link")
    launches.mkdir(parents=True, exist_ok=True)
    _forget_old_jobs(launches)
    record = launches / f"{launch.key}.directory"
    directory = Path(record.read_text()) if launch.attempt > 0 and record.exists() else None
    if directory is None or not directory.is_dir():
        directory = _make(path)
    with atomic_write(record) as file:
        file.write(str(directory).encode())
    return directory


def _forget_old_jobs(launches: Path) -> None:
    """Delete what jobs left that did not start again for a month: a record, or the questions of killed ranks."""
    for old in launches.iterdir():
        with suppress(OSError):  # another process deletes it too, or there is something else in the folder
            if old.lstat().st_mtime > time.time() - _MONTH_S:
                continue
            if old.suffix == ".directory":
                old.unlink()
            elif not old.is_symlink():
                for left in (*old.glob("*.question"), *old.glob("*.end"), old / "answer.json"):
                    left.unlink(missing_ok=True)
                old.rmdir()


def _make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    number, directory = 1, path
    while True:
        try:
            directory.mkdir()
        except FileExistsError:
            number += 1
            directory = path.with_name(f"{path.name}-{number}")
        else:
            return directory


class RunDirectory:
    """The files of a run.

    Args:
        path: an existing directory, or one to create.
        is_writer: true on the first rank, the only one that writes.
    """

    def __init__(self, path: Path, is_writer: bool = True) -> None:
        self.path = path.resolve()
        self.is_writer = is_writer
        self.config = self.path / "config.yaml"
        self.start_settings = self.path / ".start.yaml"
        self.metrics = self.path / "metrics.csv"
        self.figures = self.path / "figures"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.lease = lease_of(self.path, 0)
        self._summary = self.path / "summary.json"

    def start(self, launch: Launch, *, name: str, choices: Mapping[str, Any], is_resumed: bool) -> bool:
        """On the first rank, prepare the directory; return whether the same job was interrupted here before.

        Args:
            launch: of this process.
            name: of the run.
            choices: which file of each config group was used.
            is_resumed: `ckpt=` names the run, so the directory may hold it.

        Raises:
            UserError: the directory holds another run.
        """
        for folder in (self.figures, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
            remove_parts(folder)
        remove_parts(self.path)
        for pattern in ("rank*.error", "rank*.signal", f"{LEASE}.*"):
            for left in self.path.glob(pattern):  # by ranks of an earlier attempt
                left.unlink()
        known = self.summary()
        requeued = launch.key is not None and launch.attempt > 0 and known.get("launch") == launch.key
        if not known:
            facts = {"id": secrets.token_hex(4), "name": name, "choices": dict(choices), "created": _now()}
            _write_json(self._summary, facts)
        elif not is_resumed and not requeued:
            raise UserError(f"{self.path} holds a run: resume it with ckpt={self.path}, or change hydra.run.dir")
        self.record("running", launch=launch.key)
        return requeued

    def summary(self) -> dict[str, Any]:
        """The content of summary.json; empty without one."""
        return read_summary(self.path)

    def record(self, state: State, **facts: Any) -> None:
        """Write the state, and add facts to those in the file."""
        if self.is_writer:
            _write_json(self._summary, {**self.summary(), **facts, "state": state, "updated": _now()})

    def save_config(self, text: str) -> None:
        """Save the settings as YAML."""
        if self.is_writer:
            with atomic_write(self.config) as file:
                file.write(text.encode())

    def save_start(self, text: str) -> None:
        """Save the settings of this start as YAML, with the checkpoint to resume: the other ranks follow them."""
        with atomic_write(self.start_settings) as file:
            file.write(text.encode())

    def save_command(self, command: list[str]) -> None:
        """Append the command line that gave the settings."""
        if self.is_writer:
            with open(self.path / "commands.txt", "a") as lines:
                lines.write(f"{_now()}  {shlex.join(command)}\n")

    def save_environment(self, devices: list[str]) -> None:
        """Save the versions, the machine and the devices, on which results may depend."""
        if self.is_writer:
            _write_json(self.path / "environment.json", {**environment(), "devices": devices})

    def save_traceback(self, text: str) -> None:
        """Save the traceback of a fault."""
        with open(self.path / "traceback.txt", "a") as file:
            file.write(f"{_now()}\n{text}\n\n")


def read_summary(path: Path) -> dict[str, Any]:
    """The content of a run directory's summary.json; empty without one.

    Raises:
        UserError: the file is damaged.
    """
    file = path / "summary.json"
    if not os.path.lexists(file):
        return {}
    require_file(file)
    try:
        summary: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({first_line(error)}): restore it, or remove it") from error
    if not isinstance(summary, dict):
        raise UserError(f"{file} is damaged (it holds no JSON object): restore it, or remove it")
    return summary


def lease_of(directory: Path, rank: int) -> Path:
    """The file that shows that a rank works in a run's directory; the first rank's makes it the only writer."""
    return directory / (LEASE if rank == 0 else f"{LEASE}.rank{rank}")


def state_of(path: Path) -> str:
    """The state of the run in a directory: as it is recorded; ``killed`` if it says running, and no process is."""
    state: str = read_summary(path).get("state", "not started")
    return "killed" if state == "running" and not is_held(lease_of(path, 0)) else state


def environment() -> dict[str, Any]:
    """Code version, library versions and machine of this process, as plain values."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "git": _git(),
        "python": platform.python_version(),
        "versions": versions,
        "host": platform.node(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "command": sys.argv,
        "directory": os.getcwd(),
    }


def _git() -> dict[str, Any] | None:
    """The commit of the running code, and whether it was changed since; None for an installed package."""
    source = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(source), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # fails for a package installed inside another repository
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, default=str) + "\n").encode())


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
