"""How this process was started: its rank, and a key that the other ranks and later attempts of its job share.

There are three cases. Lightning's own launcher starts the other ranks from the first and passes them the run directory.
torchrun and srun start all ranks at once, and the ranks must agree on one directory. A preempted SLURM job starts again
later, and must find its directory.
"""

import os
import socket
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitmae.errors import UserError

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
    """

    rank: int = 0
    separate: bool = False
    key: str | None = None
    attempt: int = 0

    @property
    def is_child(self) -> bool:
        """Whether the first process of the run started this one, and waits for it."""
        return self.rank > 0 and not self.separate


def current_launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """Read from the environment how this process was started.

    Raises:
        UserError: torchrun started ranks on several nodes without --rdzv-id.
    """
    rank = next((int(environ[name]) for name in _RANK_VARIABLES if name in environ), 0)
    if "TORCHELASTIC_RUN_ID" in environ:
        attempt = int(environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        return Launch(rank, True, f"torchrun-{_torchrun_name(environ)}", attempt)
    if "SLURM_JOB_ID" in environ:
        separate = "SLURM_STEP_ID" in environ and int(environ.get("SLURM_NTASKS", 1)) > 1
        step = environ.get("SLURM_STEP_ID", "batch")
        # one job may run several commands, one after the other; each is another run
        command = zlib.crc32("\0".join(sys.argv[1:]).encode())
        key = f"slurm-{environ['SLURM_JOB_ID']}-{step}-{command:08x}"
        alone = not separate and "LOCAL_RANK" not in environ
        return Launch(0 if alone else rank, separate, key, int(environ.get("SLURM_RESTART_COUNT", 0)))
    return Launch(rank)


def _torchrun_name(environ: Mapping[str, str]) -> str:
    """The rendezvous id; without one, the process id of torchrun, if all ranks are on one node."""
    name = environ["TORCHELASTIC_RUN_ID"]
    if name != "none":
        return name
    if environ.get("WORLD_SIZE") != environ.get("LOCAL_WORLD_SIZE"):
        raise UserError("torchrun on several nodes needs --rdzv-id=NAME, so that all ranks agree on one run directory")
    agent = os.getppid()
    stat = Path(f"/proc/{agent}/stat")
    # the start time is added, because process ids are reused
    started = stat.read_text().rsplit(")", 1)[1].split()[19] if stat.exists() else "0"
    return f"{socket.gethostname()}-{agent}-{started}"
