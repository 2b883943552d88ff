"""How this process was started: its rank, and a key that the other ranks and later attempts of its job share.

There are three cases. Lightning's own launcher starts the other ranks from the first and passes them the run directory.
torchrun and srun start all ranks at once, and the others must follow the first (`vitmae.runs.agreement`). A preempted
SLURM job starts again later, and must find its directory.
"""

import os
import re
import socket
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitmae.errors import UserError
from vitmae.lease import start_of

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
RANK_MARKERS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK")
"""What Lightning's launcher sets in the environment of the first process."""


@dataclass(frozen=True)
class Launch:
    """How this process was started.

    Attributes:
        rank: over all processes of the run.
        separate: torchrun or srun started all ranks; otherwise the first rank starts the others.
        key: the same for all ranks of a job and for its later attempts; None: there are no others to find.
        attempt: how often the job was started before.
        world: how many processes the run has; 1 if the first starts the others.
        meeting: the same for all ranks of this start, and of no other start at the same time.
    """

    rank: int = 0
    separate: bool = False
    key: str | None = None
    attempt: int = 0
    world: int = 1
    meeting: str | None = None

    @property
    def is_child(self) -> bool:
        """Whether the first process of the run started this one, and waits for it."""
        return self.rank > 0 and not self.separate


def current_launch(environ: Mapping[str, str] = os.environ, words: Sequence[str] | None = None) -> Launch:
    """Read from the environment how this process was started.

    Args:
        environ: the environment.
        words: the command line as the user wrote it, by default this process's; `sys.argv` is no longer that, because
            commands add words for Hydra, other words on each rank.

    Raises:
        UserError: torchrun started ranks on several nodes without --rdzv-id.
    """
    rank = next((int(environ[name]) for name in _RANK_VARIABLES if name in environ), 0)
    # one job may run several commands, one after the other; each is another run
    command = zlib.crc32("\0".join(sys.orig_argv[1:] if words is None else words).encode())
    requeues = int(environ.get("SLURM_RESTART_COUNT", 0))
    if "TORCHELASTIC_RUN_ID" in environ:
        attempt = int(environ.get("TORCHELASTIC_RESTART_COUNT", 0)) + requeues
        key = _as_file_name(f"torchrun-{_torchrun_name(environ)}-{command:08x}")
        meeting = _as_file_name(f"{key}-{environ.get('MASTER_ADDR')}-{environ.get('MASTER_PORT')}")
        return Launch(rank, True, key, attempt, int(environ.get("WORLD_SIZE", 1)), meeting)
    if "SLURM_JOB_ID" in environ:
        world = int(environ.get("SLURM_NTASKS", 1)) if "SLURM_STEP_ID" in environ else 1
        step = environ.get("SLURM_STEP_ID", "batch")
        cluster = environ.get("SLURM_CLUSTER_NAME", "slurm")
        key = _as_file_name(f"{cluster}-{environ['SLURM_JOB_ID']}-{step}-{command:08x}")
        alone = world == 1 and "LOCAL_RANK" not in environ
        return Launch(0 if alone else rank, world > 1, key, requeues, world, key)
    return Launch(rank)


def _torchrun_name(environ: Mapping[str, str]) -> str:
    """The rendezvous id; without one, the process id of torchrun, if all ranks are on one node."""
    name = environ["TORCHELASTIC_RUN_ID"]
    if name != "none":
        return name
    if environ.get("WORLD_SIZE") != environ.get("LOCAL_WORLD_SIZE"):
        raise UserError("torchrun on several nodes needs --rdzv-id=NAME, so that all ranks agree on one run directory")
    agent = os.getppid()
    return f"{socket.gethostname()}-{agent}-{start_of(agent)}"  # with its start time: process ids are used again


def _as_file_name(text: str) -> str:
    return re.sub(r"[^\w.-]", "_", text)
