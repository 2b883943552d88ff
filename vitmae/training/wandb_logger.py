"""Weights & Biases: online with a key, offline without one. A failure of W&B never stops a run.

Everything is written below the run's directory first, so what the server did not receive can be synced later.
"""

import logging
import os
import shlex
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from annotated_types import Gt
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from vitmae.errors import first_line
from vitmae.runs.directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mode = Literal["auto", "online", "offline", "disabled"]
_STEP = "trainer/global_step"
_log = logging.getLogger(__name__)


def has_key() -> bool:
    """Whether there is a key for the W&B server, in the environment or in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    hosts = [_host()] if "WANDB_BASE_URL" in os.environ else [_host(), "api.wandb.ai"]  # the cloud has had two names
    places = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for path in map(Path.expanduser, map(Path, places)):
        try:
            entries = map(netrc(path).authenticators, hosts)
        except (OSError, NetrcParseError):
            continue
        if any(entry is not None and entry[2] for entry in entries):
            return True
    return False


def _host() -> str:
    """The server's name and port, of the environment or of wandb's own settings."""
    if "WANDB_BASE_URL" in os.environ:
        return urlsplit(os.environ["WANDB_BASE_URL"]).netloc
    import wandb

    return urlsplit(wandb.setup().settings.base_url).netloc


class Wandb(Logger):
    """The W&B run of a run directory: a resumed run logs to the same one.

    Args:
        run: its directory; its summary.json holds the id of the W&B run.
        project: on the server.
        entity: user or team; None: the owner of the key.
        mode: ``auto`` is ``WANDB_MODE`` if that is set, else online with a key and offline without one.
        tags: of the run on the server.
        log_checkpoint: upload the checkpoint as an artifact: each new best, and the last one.
        init_timeout: seconds to wait for the server before the run continues offline.
        finish_timeout: seconds to wait at the end for the rest of the upload.
    """

    def __init__(
        self,
        run: RunDirectory,
        project: str = "vitmae",
        entity: str | None = None,
        mode: Mode = "auto",
        tags: Sequence[str] = (),
        log_checkpoint: bool = False,
        init_timeout: Annotated[float, Gt(0)] = 30,
        finish_timeout: Annotated[float, Gt(0)] = 60,
    ) -> None:
        super().__init__()
        self._directory, self.project, self.entity, self.mode, self.tags = run, project, entity, mode, list(tags)
        self.log_checkpoint, self.init_timeout, self.finish_timeout = log_checkpoint, init_timeout, finish_timeout
        self._run: Any = None
        self._is_lost = self._has_set_data_dir = False

    def without_effect(self) -> dict[str, str]:
        """Settings that have no effect in this mode, see `vitmae.training.accounting`."""
        idle = {"offline": ("init_timeout", "finish_timeout"), "disabled": ("entity", "tags", "log_checkpoint")}
        idle["disabled"] += idle["offline"]
        return dict.fromkeys(idle.get(self.mode, ()), f"logger.wandb.mode={self.mode} talks to no server")

    @property
    def name(self) -> str:
        """The project on the server."""
        return self.project

    @property
    def version(self) -> str | None:
        """The id of the W&B run."""
        return self._directory.summary().get("id")

    def _start(self) -> Any:
        """The W&B run, started at its first use; one line says whether it is online or offline."""
        if self._run is not None:
            return self._run
        os.environ.setdefault("WANDB_SILENT", "true")  # this class prints one line instead
        if "WANDB_DATA_DIR" not in os.environ:  # where artifacts wait for upload
            os.environ["WANDB_DATA_DIR"] = str(self._directory.path / "wandb")
            self._has_set_data_dir = True
        mode: str = self.mode
        why = ""
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
            why = "" if has_key() else ", no API key"
        if mode == "offline":  # no reports of errors and usage either
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            self._run = self._init(mode)
        except Exception as error:
            if mode != "online":
                raise
            import wandb

            wandb.teardown()  # it holds the id of the run that failed to start
            self._run = self._init("offline")
            why = f", {_host()} cannot be used: {first_line(error)}"
        if self._run.offline:
            _log.info("W&B: offline%s; upload with: %s", why, self._sync_command())
        elif mode == "online":
            _log.info("W&B: online at %s", self._run.url)
        self._run.define_metric(_STEP)
        self._run.define_metric("*", step_metric=_STEP)
        return self._run

    def _init(self, mode: Any) -> Any:
        import wandb

        summary = self._directory.summary()
        return wandb.init(
            mode=mode,
            project=self.project,
            entity=self.entity,
            tags=self.tags,
            name=summary.get("name"),
            id=summary.get("id"),
            resume="allow",
            dir=self._directory.path,
            settings=wandb.Settings(
                silent=True,
                init_timeout=self.init_timeout,
                finish_timeout=self.finish_timeout,
                finish_timeout_raises=True,
            ),
        )

    def _attempt(self, action: Callable[[Any], Any]) -> None:
        """Do something with the W&B run; after the first failure, which is logged, do nothing more."""
        if self._is_lost:
            return
        try:
            action(self._start())
        except Exception as error:
            self._is_lost = True
            remedy = f"; upload the rest with: {self._sync_command()}" if self._run else ""
            _log.warning("W&B: no longer logged, %s%s", first_line(error), remedy)

    def _sync_command(self) -> str:
        return f"wandb sync {shlex.quote(self._run.settings.sync_dir)}"

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log the run's settings, nested as they are."""
        self._attempt(lambda run: run.config.update(params, allow_val_change=True))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars by name, over the optimiser step."""
        self._attempt(lambda run: run.log({**metrics, _STEP: step or 0}))

    @rank_zero_only
    def log_figure(self, key: str, figure: "Figure", step: int) -> None:
        """Log a matplotlib figure as an image, over the optimiser step."""

        def send(run: Any) -> None:
            import wandb

            run.log({key: wandb.Image(figure), _STEP: step})

        self._attempt(send)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        """Upload a new best checkpoint."""
        self._upload(self._directory.best, "best")

    def _upload(self, path: Path, alias: str) -> None:
        if not self.log_checkpoint or not path.exists():
            return

        def send(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(f"checkpoint-{run.id}", type="model", metadata={"file": path.name})
            artifact.add_file(str(path), name=path.name)  # copied: the next checkpoint replaces this file
            run.log_artifact(artifact, aliases=[alias])

        self._attempt(send)

    @rank_zero_only
    def close(self, metrics: Mapping[str, float], exit_code: int) -> None:
        """Send the final metrics and the last checkpoint, and wait for the upload at most `finish_timeout` seconds."""
        if self._run is None:
            return
        self._upload(self._directory.last, "last")
        self._attempt(lambda run: run.summary.update(dict(metrics)))
        self._attempt(lambda run: run.finish(exit_code))
        import wandb

        with suppress(Exception):  # wandb's process may be dead, and that is no fault of the run
            wandb.teardown()  # writes the rest of the log to the file
        self._run = None
        if self._has_set_data_dir:  # the next run of this process has its own
            del os.environ["WANDB_DATA_DIR"]
