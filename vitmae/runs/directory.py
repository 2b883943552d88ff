"""One run, one directory: `runs/<date>/<time>-<name>/`.

    config.yaml         every setting as it was used, resolved to plain values
    commands.txt        each command line that worked on this run, with its time
    environment.json    code version, library versions, host, devices
    metrics.csv         every logged number
    checkpoints/        last.ckpt, best.ckpt
    figures/            pictures
    effects.txt         what took effect, read back from the built objects
    train.log           what was printed, with times
    summary.json        the state (running, finished, interrupted or failed), and the final metrics

Only the first rank writes. Files that are replaced are replaced whole.
"""

import json
import os
import platform
import secrets
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from vitmae.atomic import atomic_write, remove_parts
from vitmae.errors import UserError
from vitmae.runs.launch import Launch

State = Literal["running", "finished", "interrupted", "failed"]
_PACKAGES = ("vitmae", "torch", "torchvision", "lightning", "timm", "hydra-core", "omegaconf", "numpy", "wandb")


def claim_directory(path: Path, launch: Launch, runs: Path) -> Path:
    """Create a run's directory; all processes of the run get the same one, and no other run does.

    Args:
        path: of the directory; ``-2``, ``-3``, … is appended if it exists.
        launch: of this process. Ranks that were started side by side get the directory of the first of them; a later
            attempt of a job gets the directory of the earlier attempt.
        runs: the folder of all runs; it holds the agreements of ranks and attempts on a directory.
    """
    path, runs = path.resolve(), runs.resolve()
    if launch.key is None:
        return _make(path)
    agreements = runs / ".launches"
    agreements.mkdir(parents=True, exist_ok=True)
    agreement = agreements / f"{launch.key}-{launch.attempt}"
    if launch.separate and agreement.exists():
        return Path(agreement.read_text())
    earlier = [agreements / f"{launch.key}-{attempt}" for attempt in reversed(range(launch.attempt))]
    directory = next((Path(record.read_text()) for record in earlier if record.exists()), None)
    made = directory is None
    directory = directory or _make(path)
    if not launch.separate:
        with atomic_write(agreement) as file:
            file.write(str(directory).encode())
        return directory
    proposal = agreements / f"{agreement.name}.{launch.rank}"
    proposal.write_text(str(directory))
    try:
        os.link(proposal, agreement)  # one of all ranks succeeds, and the file is complete at once
    except FileExistsError:
        if made:
            directory.rmdir()
    finally:
        proposal.unlink()
    return Path(agreement.read_text())


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
        self.metrics = self.path / "metrics.csv"
        self.figures = self.path / "figures"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self._summary = self.path / "summary.json"

    def start(self, launch: Launch, *, name: str, choices: Mapping[str, Any], is_resumed: bool) -> bool:
        """Prepare the directory; return whether an earlier attempt of the same job was interrupted here.

        Args:
            launch: of this process.
            name: of the run.
            choices: which file of each config group was used.
            is_resumed: `ckpt=` names the run, so the directory may hold it.

        Raises:
            UserError: the directory holds another run.
        """
        if not self.is_writer:
            return self._is_requeued(launch)
        for folder in (self.figures, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
            remove_parts(folder)
        remove_parts(self.path)
        for message in self.path.glob("rank*.error"):  # of an earlier attempt
            message.unlink()
        requeued = self._is_requeued(launch)
        if self._summary.exists():
            if not is_resumed and not requeued:
                raise UserError(f"{self.path} holds a run: resume it with ckpt={self.path}, or change hydra.run.dir")
        else:
            facts = {"id": secrets.token_hex(4), "name": name, "choices": dict(choices), "created": _now()}
            with open(self._summary, "x") as file:  # raises in the second of two runs with one directory
                json.dump(facts, file)
        self.record("running", launch=launch.key)
        return requeued

    def _is_requeued(self, launch: Launch) -> bool:
        return launch.key is not None and launch.attempt > 0 and self.summary().get("launch") == launch.key

    def summary(self) -> dict[str, Any]:
        """The content of summary.json; empty without one."""
        return read_summary(self.path)

    def record(self, state: State, **facts: Any) -> None:
        """Write the state, and add facts to those in the file."""
        if self.is_writer:
            _write_json(self._summary, {**self.summary(), **facts, "state": state, "updated": _now()})

    def save_config(self, text: str, command: list[str]) -> None:
        """Save the settings as YAML, and append the command line that gave them."""
        if not self.is_writer:
            return
        with atomic_write(self.config) as file:
            file.write(text.encode())
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
    """The content of a run directory's summary.json; empty without one."""
    try:
        summary: dict[str, Any] = json.loads((path / "summary.json").read_text())
    except FileNotFoundError:
        return {}
    return summary


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
