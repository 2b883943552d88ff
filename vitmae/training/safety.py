"""A loss, a gradient or a weight that is not finite: nothing good is overwritten, and the step can be replayed.

The check is made between the backward pass and the optimiser's step, so the weights are never spoiled. A step is left
out by dropping its gradients: an optimiser does not touch parameters without one.

    stop        the run ends with one line that names the step and the remedies
    skip        the step is left out; weights, moments and the optimiser's count stay, the schedule moves on
    rollback    weights, average and moments are those of last.ckpt again; data and schedule move on, as in PaLM's
                training (https://arxiv.org/abs/2204.02311, section 5.1)

The first steps of a run that fail are saved in ``nonfinite/``, see `vitmae.training.replay`.
"""

import logging
import math
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, distributed
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from vitmae.batch import Batch
from vitmae.errors import UserError
from vitmae.limits import check_arguments
from vitmae.runs.checkpoint_file import FORMAT
from vitmae.runs.directory import RunDirectory
from vitmae.runs.exit import short
from vitmae.training.averaging import averages
from vitmae.training.lightning_internals import average_of

OnNonfinite = Literal["stop", "skip", "rollback"]
MOST_SKIPPED = 20
"""Steps in a row that `skip` leaves out before the run stops."""
_MOST_BUNDLES = 3  # of a run: each is as large as a checkpoint

_log = logging.getLogger(__name__)


class Safety(Callback):
    """Checks the loss and the norm of the gradient in each optimiser step; all ranks decide together.

    The check reads one number from the device in each step. A norm that overflows counts as not finite, because
    Adam squares the gradient. With ``precision=16-mixed`` only the loss is checked: the scaler provokes infinite
    gradients, and leaves out those steps itself.

    Args:
        run: where failed steps are saved, and whose last.ckpt a rollback loads.
        settings: the run's, as plain values; saved with a failed step.
        facts: what else a checkpoint holds, see `vitmae.training.checkpoints.Checkpoints`.
        on_nonfinite: stop, skip or rollback.

    Attributes:
        skipped_steps: how many steps were left out, logged as ``train/skipped_steps``.
    """

    @check_arguments()
    def __init__(
        self,
        run: RunDirectory,
        settings: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
        on_nonfinite: OnNonfinite = "stop",
    ) -> None:
        self._run, self.on_nonfinite = run, on_nonfinite
        self._plain = {"vitmae_format": FORMAT, "vitmae_config": dict(settings), "vitmae_facts": dict(facts or {})}
        self.skipped_steps = self._in_a_row = 0
        self._good: Path | None = None
        self._rolled_back_to: int | None = None
        self._batches: list[Batch] = []  # of the present optimiser step
        self._losses: list[Tensor] = []

    def state_dict(self) -> dict[str, int]:
        """The counts."""
        return {"skipped_steps": self.skipped_steps, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore the counts."""
        self.skipped_steps, self._in_a_row = state_dict["skipped_steps"], state_dict["in_a_row"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Until this run saves, it can roll back to what it resumed from; a last.ckpt may be of a later step."""
        self._good = Path(trainer.ckpt_path) if trainer.ckpt_path else None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """From now on a rollback loads last.ckpt."""
        self._good = self._run.last

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Hold the batch until its step is known to be good."""
        self._batches.append(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Hold the loss: in a step of several batches, that of each."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Leave out the step if a value is not finite on any rank.

        Raises:
            UserError: the run stops.
        """
        batches, losses, self._batches, self._losses = self._batches, self._losses, [], []
        loss, norm = torch.stack(losses).sum(), _gradient_norm(trainer, optimizer)
        finite = math.isfinite(float(loss + norm))
        if trainer.strategy.reduce_boolean_decision(finite, all=True):
            self._in_a_row = 0
            return
        values = {"loss": float(loss), "gradient_norm": float(norm)}
        ranks = _of_all_ranks(trainer, values)
        bad = [rank for rank, seen in enumerate(ranks) if not all(map(math.isfinite, seen.values()))]
        rank = bad[0] if bad else 0  # none if only the sum of both overflows
        values, where = ranks[rank], f" of rank {rank}" if trainer.world_size > 1 else ""
        bundle = self._save_bundle(trainer, batches, values)
        fault = (
            f"step {trainer.global_step + 1}: the loss{where} is {values['loss']:g} and the norm of the gradient "
            f"{values['gradient_norm']:g}"
        )
        seen = (
            f"; look at the step with: python -m vitmae.replay {shlex.quote(f'bundle={short(bundle)}')}"
            if bundle
            else ""
        )
        self.skipped_steps, self._in_a_row = self.skipped_steps + 1, self._in_a_row + 1
        if self.on_nonfinite == "stop":
            raise UserError(f"{fault}, so the run stops before this step{seen}; {remedy(self._run)}")
        if self.on_nonfinite == "skip" and self._in_a_row >= MOST_SKIPPED:
            raise UserError(f"{fault}, as in the {MOST_SKIPPED - 1} steps before{seen}; {remedy(self._run)}")
        outcome = "left out" if self.on_nonfinite == "skip" else self._roll_back(trainer, pl_module, fault + seen)
        _log.warning("%s: %s (steps left out so far: %d)%s", fault, outcome, self.skipped_steps, seen)
        _leave_out(trainer, optimizer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Log how many steps were left out, after each of them."""
        if self._in_a_row and not self._batches:
            for logger in trainer.loggers:
                logger.log_metrics({"train/skipped_steps": self.skipped_steps}, step=trainer.global_step)

    def _roll_back(self, trainer: Trainer, module: LightningModule, fault: str) -> str:
        """Load the state of the last checkpoint; return what was done, in words.

        Raises:
            UserError: there is none, or none was saved since it was loaded before.
        """
        if self._good is None or not self._good.is_file():
            raise UserError(f"{fault}: there is no checkpoint yet to roll back to; {remedy(self._run)}")
        saved = trainer.strategy.load_checkpoint(self._good)
        if saved["global_step"] == self._rolled_back_to:
            raise UserError(
                f"{fault}: the run was rolled back to step {self._rolled_back_to} already, and has not saved since; "
                f"{remedy(self._run)}"
            )
        self._rolled_back_to = saved["global_step"]
        module.load_state_dict(saved["state_dict"])
        for average in averages(trainer):
            average.on_load_checkpoint(trainer, module, saved)
        for optimizer, state in zip(trainer.optimizers, saved["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)  # with the present learning rate, see `vitmae.recipe`
        return f"left out, weights and moments are those of step {self._rolled_back_to} again"

    def _save_bundle(self, trainer: Trainer, batches: list[Batch], values: Mapping[str, float]) -> Path | None:
        """Save all that the step depends on, with the batches of all ranks; None if enough are saved already."""
        folder, step = self._run.path / "nonfinite", trainer.global_step + 1
        path = folder / f"step{step}.ckpt"
        if trainer.strategy.broadcast(not path.exists() and len(list(folder.glob("*.ckpt"))) >= _MOST_BUNDLES):
            return None
        of_all = _of_all_ranks(trainer, [_on_cpu(batch) for batch in batches])
        if trainer.is_global_zero:
            content = {
                **self._plain,
                "state_dict": trainer.lightning_module.state_dict(),
                "optimizer_states": [optimizer.state_dict() for optimizer in trainer.optimizers],
                "step": step,
                "epoch": trainer.current_epoch,
                "values": dict(values),
                "precision": str(trainer.precision),
                "accumulate": trainer.accumulate_grad_batches,
                "batches": of_all,
            }
            trainer.strategy.checkpoint_io.save_checkpoint(content, path)
        return path


def remedy(run: RunDirectory) -> str:
    """How to continue after a value was not finite; each of these settings may change when a run resumes."""
    return (
        f"to continue from last.ckpt: python -m vitmae.train {shlex.quote(f'ckpt={short(run.path)}')} with a smaller "
        "model.optimizer.base_lr, a longer model.optimizer.warmup_epochs, trainer.gradient_clip_val=1 "
        "or on_nonfinite=skip"
    )


def is_sound(trainer: Trainer) -> bool:
    """Whether all weights, their average and the optimiser's state are finite, on this rank; waits for the device."""
    tensors: list[Any] = list(trainer.lightning_module.parameters())
    for average in averages(trainer):
        model = average_of(average)
        tensors += model.parameters() if model is not None else []
    for optimizer in trainer.optimizers:
        tensors += [value for state in optimizer.state.values() for value in state.values()]
    return all_finite(tensors)


def all_finite(values: Iterable[Any]) -> bool:
    """Whether each value in each tensor of floating-point numbers is finite; other values do not count."""
    tensors = [value.detach() for value in values if isinstance(value, Tensor) and value.is_floating_point()]
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            by_device.setdefault(tensor.device, []).append(tensor)
    return all(bool(get_total_norm(group, math.inf).isfinite()) for group in by_device.values())


def _gradient_norm(trainer: Trainer, optimizer: Optimizer) -> Tensor:
    """The 2-norm of all gradients, a scalar on the device; 0 where a scaler checks them."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if has_scaler(trainer) or not gradients:
        return torch.zeros((), device=trainer.strategy.root_device)
    return get_total_norm(gradients)


def has_scaler(trainer: Trainer) -> bool:
    """Whether the loss is scaled, as 16-mixed precision needs."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _leave_out(trainer: Trainer, optimizer: Optimizer) -> None:
    """Make the optimiser's next step change nothing."""
    if not (has_scaler(trainer) and optimizer.defaults.get("fused")):
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:  # here the scaler looks at the gradients later, and must find infinite ones
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.fill_(math.inf)


def _of_all_ranks(trainer: Trainer, own: Any) -> list[Any]:
    """What each rank holds, in the order of ranks."""
    held = [own]
    if trainer.world_size > 1:
        held = [None] * trainer.world_size
        distributed.all_gather_object(held, own)
    return held


def _on_cpu(batch: Batch) -> dict[str, Any]:
    """A batch as tensors on the CPU and plain values, which a checkpoint can hold."""
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in batch._asdict().items()}
