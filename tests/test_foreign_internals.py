"""Private names of other libraries: touched in one file per library, and each does what this project uses it for."""

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, Trainer
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import nn
from torch.nn import functional as F

import vitmae
from tests.training.standin import QUIET, KillBefore, Numbers, Weights, new_run, train
from vitmae import torch_internals
from vitmae.data.loader import Loader
from vitmae.training import checkpoints, lightning_internals
from vitmae.training.averaging import WeightAverage

pytestmark = QUIET

PACKAGE = Path(vitmae.__file__).parent
ROOMS = {"torch_internals.py", "training/lightning_internals.py"}
PUBLIC = {"_replace", "_asdict", "_fields", "_exit"}  # documented under these names: of a named tuple, of os


def test_no_other_file_touches_a_private_name_of_another_library():
    trees = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    own = {name for tree in trees.values() for name in _defined(tree)} | PUBLIC
    found = {
        f"{path}:{line}: {name}"
        for path, tree in trees.items()
        for line, name in _touched(tree)
        if path not in ROOMS and name not in own
    }
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "module._forward_hooks",
        "self._average_model",
        "torch.ops.mkldnn._linear_pointwise",
        "getattr(module, '_compiled_call_impl', None)",
        "from hydra._internal import hydra",
        "from lightning.pytorch.loops.fit_loop import _FitLoop",
    ],
)
def test_the_search_for_private_names_finds_every_way_to_touch_one(line):
    assert list(_touched(ast.parse(line)))


def _defined(tree: ast.AST) -> Iterator[str]:
    """Names with one underscore in front that a file gives to something of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _touched(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines on which a private attribute is used, asked for by name, or imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            names = [part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.startswith("_") and not name.startswith("__"))


# -- Lightning -----------------------------------------------------------------------------------------------------


def test_lightning_still_needs_to_be_told_that_a_finished_epoch_is_finished(tmp_path, monkeypatch):
    """With the override a run killed at the end of an epoch begins the next; without it, Lightning's own way."""

    class Ends(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.trace.append(("end", trainer.current_epoch))

    settings = {"max_steps": 12, "max_epochs": -1, "val_check_interval": 3}
    whole = train(new_run(tmp_path / "whole"), 1, (Ends(),), **settings)
    run = new_run(tmp_path / "killed")
    train(run, 1, (KillBefore(6),), **settings)
    resumed = train(run, 1, (Ends(),), ckpt=run.last, **settings)
    assert whole.trace[-len(resumed.trace) :] == resumed.trace
    assert resumed.trace[0][0] == "train"
    monkeypatch.setattr(checkpoints, "start_next_epoch_after_its_end", lambda trainer: None)
    run = new_run(tmp_path / "not-told")
    train(run, 1, (KillBefore(6),), **settings)
    misled = train(run, 1, (Ends(),), ckpt=run.last, **settings)
    assert misled.trace[0] == ("end", 0)  # for the second time


def test_lightning_still_tells_whether_a_validation_is_due(tmp_path, monkeypatch):
    """A checkpoint before a validation that is due would be resumed without it: that is what the answer is for."""
    answers, asked = [], lightning_internals.is_validation_due

    def remembering(trainer):
        answers.append((trainer.global_step, asked(trainer)))
        return answers[-1][1]

    monkeypatch.setattr(checkpoints, "is_validation_due", remembering)
    objective = train(new_run(tmp_path), 1, max_epochs=1, val_check_interval=2)
    validated = {step for kind, _, step, *_ in objective.trace if kind == "val"}
    assert {step for step, is_due in answers if is_due} == validated & {step for step, _ in answers} != set()


def test_lightnings_average_is_where_it_was_and_its_module_is_what_is_averaged(tmp_path):
    average = WeightAverage(0.9)
    assert lightning_internals.average_of(average) is None
    objective = train(new_run(tmp_path), 1, (average,), max_epochs=1)
    model = lightning_internals.average_of(average)
    assert int(model.n_averaged) == objective.global_step
    assert torch.equal(model.module.weights, objective.weights)


# -- torch ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch_internals.can_fuse_bias(), reason="this processor has no such product")
def test_torchs_product_with_a_bias_adds_it():
    x, weight, bias = (torch.randn(shape).bfloat16() for shape in ((2, 5, 8), (4, 8), (4,)))
    for given in (bias, None):
        expected = F.linear(x.float(), weight.float(), None if given is None else given.float())
        assert torch.allclose(torch_internals.linear_with_bias(x, weight, given).float(), expected, atol=0.05)


def test_torch_has_the_names_by_which_a_processor_is_asked_for_that_product():
    """Where they are gone the product is silently not used, and a step is slower."""
    assert torch.backends.mkldnn.is_available() <= hasattr(torch.ops.mkldnn, "_linear_pointwise")
    assert torch.backends.mkldnn.is_available() <= hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")


def test_torchs_softmax_backward_is_that_of_softmax():
    scores, grad = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5)
    weights = scores.softmax(dim=-1)
    weights.backward(grad)
    assert torch.allclose(torch_internals.softmax_backward(grad, weights.detach()), scores.grad, atol=1e-6)


def test_a_module_that_is_watched_or_compiled_is_found_to_be():
    module = nn.Linear(2, 2)
    assert not torch_internals.has_forward_hooks(module)
    assert not torch_internals.is_compiled(module)
    module.register_forward_hook(lambda *_: None)
    module.compile(backend="eager")
    assert torch_internals.has_forward_hooks(module)
    assert torch_internals.is_compiled(module)


def test_workers_that_are_stopped_have_ended():
    others = set(torch.multiprocessing.active_children())
    loader = Loader(Squares(), range(4), num_workers=1, pin_memory=False)
    assert list(loader) == [0, 1, 4, 9]
    (worker,) = set(torch.multiprocessing.active_children()) - others
    torch_internals.stop_workers(loader._workers)
    assert not worker.is_alive()


class Squares:
    """A reader of numbers."""

    def __getitem__(self, request: int) -> int:
        return request**2


def test_lightnings_observer_of_started_processes_looks_at_the_list_that_is_emptied(tmp_path):
    """A process that fails no longer ends this one: `vitmae.runs.ranks` does, with a message."""
    environment = LightningEnvironment()
    launcher = _SubprocessScriptLauncher(environment, num_processes=2, num_nodes=1)
    started = lightning_internals.StartedProcesses(SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)))
    launcher.procs.append(subprocess.Popen([sys.executable, "-c", "exit(3)"]))
    observer = _ChildProcessObserver(main_pid=os.getpid(), child_processes=launcher.procs)
    (process,) = started.all()
    assert process.wait() == 3
    assert observer._run()  # it has nothing more to do, and this process lives
    assert started.all() == [process]


def test_a_strategy_without_a_launcher_has_started_no_processes():
    started = lightning_internals.StartedProcesses(SimpleNamespace(strategy=SimpleNamespace(launcher=None)))
    assert started.all() == []
    started.kill()


def test_lightning_still_replaces_handlers_of_signals_unless_it_is_kept_from_that(tmp_path):
    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            handlers.append(signal.getsignal(signal.SIGTERM))

    handlers: list[object] = []
    for keep in (False, True):
        run, objective = new_run(tmp_path / str(keep)), Weights()
        trainer = Trainer(callbacks=[Look()], default_root_dir=run.path, max_steps=1, logger=False, accelerator="cpu")
        if keep:
            lightning_internals.leave_signals_alone(trainer)
        trainer.fit(objective, datamodule=Numbers())
    assert handlers[0] != handlers[1] == signal.getsignal(signal.SIGTERM)
