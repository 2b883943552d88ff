"""The first rank decides, the others follow: the run directory, the settings and the checkpoint to resume from.

    first rank                                    every other rank
    composes the settings, makes the directory    asks: writes `rank<n>.question` with a random number
    saves settings and checkpoint in it           …
    answers, with the number of each that asked   takes the answer with its number; deletes its question
    waits until no question is left

A rank that ends before it has its answer (a signal, a fault) writes `rank<n>.end`, and then all end.

Files are the medium, because the ranks must agree before torch connects them. They lie in `runs/.launches/<job>/`, and
are removed when all have agreed. What an earlier attempt left there does no harm: its numbers are of other questions.
Ranks that Lightning starts need not ask: their command line names the directory.
"""

import json
import os
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitmae.atomic import atomic_write
from vitmae.errors import LostRank
from vitmae.interruption import ABORTED, INTERRUPTED, Interrupted, interruption
from vitmae.lease import take
from vitmae.plain_files import read_yaml
from vitmae.runs.directory import LAUNCHES, RunDirectory, lease_of
from vitmae.runs.launch import Launch

LIMIT_S = 300.0
"""How long ranks wait for each other, in seconds: a cluster may start them minutes apart."""

_END_S, _POLL_S = 30.0, 0.2


class Agreement:
    """Of ranks that torchrun or srun started side by side.

    Args:
        launch: of this process.
        runs: the folder of all runs; the same for all ranks.
    """

    def __init__(self, launch: Launch, runs: Path) -> None:
        self._launch = launch
        self._folder = runs / LAUNCHES / str(launch.meeting)
        self._answer = self._folder / "answer.json"
        self.is_settled = False

    def answer(self, content: dict[str, str | int], limit_s: float = LIMIT_S) -> None:
        """On the first rank: give all others the content and a port, and wait until each of them has it.

        Raises:
            LostRank: some did not ask within the limit, or one has ended.
            Interrupted: one has ended by a signal.
        """
        if self.is_settled:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        for file in (self._answer, *self._folder.glob("*.question")):  # of an earlier attempt; who waits now asks again
            file.unlink(missing_ok=True)
        port = _own_port()
        answered: dict[str, str] = {}
        end = time.monotonic() + limit_s
        while True:
            asking, ended = self._read_questions(), self._read_ends()
            missing = self._launch.world - 1 - len(answered.keys() | asking.keys() | ended.keys())
            if missing == 0 and not asking:
                break
            if asking.items() - answered.items():
                answered |= asking
                decided = {"code": min(ended.values())} if ended else {**content, "port": port}
                with atomic_write(self._answer, durable=False) as handle:
                    handle.write(json.dumps({**decided, "to": answered}).encode())
            if time.monotonic() > end:
                self.is_settled = True  # who comes now is too late
                raise LostRank(
                    f"{missing + len(asking)} of {self._launch.world} processes did not report to the first within "
                    f"{limit_s:.0f} s: see their output; all must start with the same command and the same runs= folder"
                )
            time.sleep(_POLL_S)
        self.is_settled = True
        for file in self._folder.iterdir():
            file.unlink(missing_ok=True)
        with suppress(OSError):
            self._folder.rmdir()
        if (code := min(ended.values(), default=0)) in (INTERRUPTED, ABORTED):
            interruption.stop()
        if ended:
            raise LostRank(f"another process of the run ended with code {code} before it began: see its output")
        _connect_at(port)

    def end(self, code: int) -> None:
        """On a rank that ends before all have agreed: end the others too."""
        if self.is_settled:
            return
        if self._launch.rank == 0:
            with suppress(LostRank, Interrupted):
                self.answer({"code": code}, _END_S)
            return
        with suppress(FileNotFoundError):  # the first rank has agreed with the others, and removes the folder
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._folder / f"rank{self._launch.rank}.end", durable=False) as file:
                file.write(f"{code} {self._launch.attempt}".encode())
        (self._folder / f"rank{self._launch.rank}.question").unlink(missing_ok=True)

    def ask(self, limit_s: float = LIMIT_S) -> Path:
        """On another rank: the run directory, in which the first rank has saved what it decided.

        Raises:
            LostRank: the first rank did not answer within the limit.
            SystemExit: the first rank has ended, with its exit code.
        """
        number, question = secrets.token_hex(8), self._folder / f"rank{self._launch.rank}.question"
        question.with_suffix(".end").unlink(missing_ok=True)  # of an earlier start
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            answer = self._read_answer()
            if answer.get("to", {}).get(question.stem) == number:
                directory = Path(answer.get("directory", ""))
                if "code" not in answer:  # the first rank watches this one from now on
                    take(lease_of(directory, self._launch.rank), str(directory))
                question.unlink(missing_ok=True)
                self.is_settled = True
                if "code" in answer:
                    raise SystemExit(answer["code"])
                _connect_at(answer["port"])
                return directory
            if not question.exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError), atomic_write(question, durable=False) as file:
                    file.write(number.encode())
            time.sleep(_POLL_S)
        question.unlink(missing_ok=True)
        self.is_settled = True
        raise LostRank(
            f"the first process has not answered process {self._launch.rank} within {limit_s:.0f} s: see its output; "
            "all must start with the same command and the same runs= folder"
        )

    def _read_questions(self) -> dict[str, str]:
        questions = {}
        for file in self._folder.glob("*.question"):
            with suppress(FileNotFoundError):  # deleted by a rank that has its answer
                questions[file.stem] = file.read_text()
        return questions

    def _read_ends(self) -> dict[str, int]:
        """The exit codes of the ranks that have ended in this attempt."""
        ends = {}
        for file in self._folder.glob("*.end"):
            code, attempt = map(int, file.read_text().split())
            if attempt == self._launch.attempt:
                ends[file.stem] = code
        return ends

    def _read_answer(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(self._answer.read_text())
        except FileNotFoundError:
            return {}
        return answer


def _own_port() -> int | None:
    """A free port of this machine, if torchrun would let the ranks find each other in its own store.

    That store outlives a restart by torchrun: a rank may find the address of one that has ended, and all fail
    (https://github.com/pytorch/pytorch/issues/135712). So each start has a store of its own, in its first rank.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _connect_at(port: int | None) -> None:
    """Let torch connect the ranks at a port of the first rank's machine; None: where the launcher says."""
    if port is not None:
        os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def decided_settings(directory: Path) -> dict[str, Any]:
    """The settings that the first rank has decided on for this start, with the checkpoint that it resumes from."""
    settings: Any = read_yaml(RunDirectory(directory).start_settings)
    return dict(settings)
