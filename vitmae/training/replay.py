"""Replay a step whose loss or gradient was not finite, and find the first tensors that are not.

`vitmae.training.safety` saves such a step in a run's ``nonfinite/``: a file with the entries of a checkpoint, and

    step, epoch, values    which step it was, and its loss and gradient norm as the run saw them
    precision, accumulate  of the Trainer
    batches                per rank, per accumulated batch: images (uint8, as the model got them), labels, keys, key

All random draws of a step follow from the keys, so the loss is the same bit for bit on the same kind of device.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Trainer
from torch import Tensor, nn

from vitmae.backbones.blocks import choose_kernels
from vitmae.batch import Batch
from vitmae.errors import UserError
from vitmae.models.objective import Objective
from vitmae.runs.checkpoint_file import read_checkpoint
from vitmae.weights.saved import from_checkpoint, rebuild


class Finding(NamedTuple):
    """A tensor with values that are not finite.

    Attributes:
        stage: weights, forward, backward (the gradient of a module's output) or gradient (of a parameter).
        name: of the parameter, or of the module whose output it is.
        shape: of the tensor.
        bad: how many of its values are not finite.
    """

    stage: str
    name: str
    shape: tuple[int, ...]
    bad: int


@dataclass(frozen=True)
class Replay:
    """What a replay found.

    Attributes:
        step: the optimiser step of the run.
        precision: of the run.
        values: loss and gradient norm as the run saw them, on the first rank where one was not finite.
        losses: per rank, of each batch of the step; not divided by their number.
        rank: of the batch with the findings.
        batch: its number among the batches of that rank, from 0.
        findings: in the order in which the tensors were computed; empty if all are finite.
    """

    step: int
    precision: str
    values: Mapping[str, float]
    losses: Sequence[Sequence[float]]
    rank: int
    batch: int
    findings: Sequence[Finding]


def replay_step(path: Path, device: torch.device, trust: Sequence[str] = ()) -> Replay:
    """Compute a saved step again, without the optimiser.

    Args:
        path: the file in ``nonfinite/``.
        device: where to compute.
        trust: further classes that the file may build, see `vitmae.classes`.

    Raises:
        UserError: the file is damaged or no saved step, or names a class that it may not build.
    """
    content = read_checkpoint(path)
    ranks = _batches(content, path)
    saved = from_checkpoint(content, path, trust)
    assert saved is not None  # `read_checkpoint` refuses a file that is no checkpoint
    precision, accelerator = content["precision"], "gpu" if device.type == "cuda" else device.type
    plugin = Trainer(accelerator=accelerator, devices=1, precision=precision, logger=False).precision_plugin
    objective: Objective = rebuild(saved)
    plugin.convert_module(objective).to(device).train()
    choose_kernels(objective, in_cpu_bf16=device.type == "cpu" and "bf16" in precision)

    def loss_of(batch: Batch, found: list[Finding]) -> float:
        objective.zero_grad()
        moved = Batch(batch.images.to(device), batch.labels.to(device), batch.keys.to(device), batch.key)
        with plugin.forward_context():
            loss: Tensor = objective.training_step(moved, 0)
        found += _finding("forward", "the loss", loss)
        (loss / content["accumulate"]).backward()
        return float(loss.detach())

    # first without hooks, with which some modules compute in another way
    losses = [[loss_of(batch, []) for batch in batches] for batches in ranks]
    places = [(rank, number) for rank, batches in enumerate(ranks) for number in range(len(batches))]
    for rank, number in places:
        with _watched(objective) as findings:
            loss_of(ranks[rank][number], findings)
        findings += [each for name, p in objective.named_parameters() for each in _finding("gradient", name, p.grad)]
        if findings:
            break
    return Replay(content["step"], precision, content["values"], losses, rank, number, findings)


@contextmanager
def _watched(objective: Objective) -> Iterator[list[Finding]]:
    """Inside the block, collect what is not finite: weights, then outputs and their gradients as they are computed."""
    found = [each for name, p in objective.named_parameters() for each in _finding("weights", name, p)]

    def after_forward(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        for tensor in output if isinstance(output, tuple | list) else [output]:
            found.extend(_finding("forward", name, tensor))
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda gradient: found.extend(_finding("backward", name, gradient)))

    modules = [(name, module) for name, module in objective.named_modules() if name]
    hooks = [module.register_forward_hook(partial(after_forward, name)) for name, module in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _finding(stage: str, name: str, tensor: Any) -> list[Finding]:
    """The finding of one tensor, in a list; empty if all of it is finite."""
    if not isinstance(tensor, Tensor):
        return []
    bad = int((~tensor.detach().isfinite()).sum())
    return [Finding(stage, name, tuple(tensor.shape), bad)] if bad else []


def _batches(content: Mapping[str, Any], path: Path) -> list[list[Batch]]:
    """The batches of each rank.

    Raises:
        UserError: the file is a checkpoint of another kind, or damaged.
    """
    if "batches" not in content:
        raise UserError(f"{path} is a checkpoint, not a saved step: give a file of a run's nonfinite/")
    try:
        ranks = [[Batch(**batch) for batch in batches] for batches in content["batches"]]
        images = [batch.images.shape[1:] for batches in ranks for batch in batches]
        _ = content["step"], content["values"], content["precision"] + "", content["accumulate"] + 1
    except (TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error}; get it again") from error
    if not images:
        raise UserError(f"{path} is damaged: it holds no batch; get it again")
    return ranks
