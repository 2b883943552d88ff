"""The smallest run there is: one weight vector, batches that are a function of their number, and a trace of it all."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from vitmae.runs.directory import RunDirectory
from vitmae.runs.launch import Launch
from vitmae.training.checkpoints import AtomicCheckpointIO, Checkpoints
from vitmae.training.fit import NOT_FOR_USERS
from vitmae.training.lightning_internals import leave_signals_alone

QUIET = [pytest.mark.filterwarnings(f"ignore:.*{message}") for message in NOT_FOR_USERS]
SETTINGS = {"model": {"mask_ratio": 0.75}, "choices": {"model": "mae", "logger": ["wandb", "csv"]}, "name": "standin"}


class Weights(LightningModule):
    """Pulls a vector towards each batch, with a momentum that a resumed run has to remember."""

    monitor = ("val/loss", "min")

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(3))
        self.last_metrics: dict[str, torch.Tensor] = {}
        self.trace: list[tuple[Any, ...]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.trace.append(("train", self.current_epoch, int(batch[0]), self.global_step))
        loss = (self.weights - batch).square().mean()
        self.last_metrics = {"loss": loss.detach()}
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        loss = (self.weights - batch).square().mean()
        if not self.trainer.sanity_checking:
            self.trace.append(("val", batch_idx, self.global_step, float(loss)))
        self.log("val/loss", loss, on_epoch=True, batch_size=1, sync_dist=True)
        self.log("step", float(self.global_step), on_epoch=True, batch_size=1, reduce_fx="max", sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Batches:
    """`count` batches an epoch; batch i of epoch e is (e * count + i) three times."""

    def __init__(self, data: "Numbers") -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.count

    def __iter__(self) -> Iterator[torch.Tensor]:
        progress = self.data.trainer.fit_loop.epoch_loop.batch_progress
        done, count = progress.total.completed, self.data.count
        is_at_end = progress.current.completed == count  # of an epoch, whose end is still to be done
        for number in range(done, (done // count + (not is_at_end)) * count):
            yield torch.full((3,), float(number))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Numbers(LightningDataModule):
    def __init__(self, count: int = 5) -> None:
        super().__init__()
        self.count = count

    def train_dataloader(self) -> Batches:
        return Batches(self)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([torch.full((3,), 2.0), torch.full((3,), 4.0)], batch_size=None)


class Killed(BaseException):
    """What a SIGKILL is to the files: nothing more is written."""


class KillBefore(Callback):
    """Ends the run within a batch, before anything is saved at its end."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer: Trainer, pl_module: Weights, *args: Any) -> None:
        if sum(kind == "train" for kind, *_ in pl_module.trace) >= self.batch:
            raise Killed


def new_run(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    run.start(Launch(), name="standin", choices=SETTINGS["choices"], is_resumed=path.exists())
    return run


def new_trainer(run: RunDirectory, checkpoints: Checkpoints, *callbacks: Callback, **settings: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[*callbacks, checkpoints],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=run.path,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
        num_sanity_val_steps=0,
        **settings,
    )
    leave_signals_alone(trainer)
    return trainer


def train(
    run: RunDirectory,
    every_n_steps: int = 1000,
    callbacks: tuple[Callback, ...] = (),
    count: int = 5,
    ckpt: Path | None = None,
    **settings: Any,
) -> Weights:
    """Train the stand-in and return it with its trace, also where it was killed."""
    objective = Weights()
    checkpoints = Checkpoints(run, objective.monitor, every_n_steps, SETTINGS)
    trainer = new_trainer(run, checkpoints, *callbacks, **settings)
    with suppress(Killed):
        trainer.fit(objective, datamodule=Numbers(count), ckpt_path=ckpt, weights_only=True)
    return objective
