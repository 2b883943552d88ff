"""What is looked at while a run trains."""

import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger
from sklearn.neighbors import KNeighborsClassifier

from tests.models.parts import OBJECTIVES
from tests.training.runs import digits, tiny_objective, trainer
from vitmae.recipe import Recipe
from vitmae.training.online import LearnBaselines, OnlineProbe, Panels
from vitmae.training.step_log import StepLog


@pytest.fixture(autouse=True)
def _lightning_hints():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", ".*LeafSpec")
        yield


class Kept(Logger):
    """A logger that keeps what it is given."""

    name, version = "kept", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_run_leaves_a_held_out_loss_a_probe_and_a_panel(kind, tmp_path):
    data, logger, figures = digits(), Kept(), []
    objective = tiny_objective(kind, data)
    panels = Panels(tmp_path / "figures", lambda *args: figures.append(args), every_n_epochs=1, images=3)
    run = trainer(tmp_path, [LearnBaselines(), OnlineProbe(every_n_epochs=1, images=200), panels, StepLog()], logger)
    run.fit(objective, datamodule=data)
    names = {name for _, row in logger.rows for name in row}
    expected = {
        "train/loss",
        "train/lr",
        "val/loss",
        "probe/knn",
        "probe/knn_cls",
        "probe/knn_avg",
        "probe/rankme_avg",
        "probe/knn_untrained",
        "probe/knn_pixels",
    }
    if kind == "vit":
        assert not (tmp_path / "figures").exists()
        expected |= {"val/acc1", "val/acc5"}
    else:
        assert [step for _, _, step in figures] == [3, 6]
        assert (tmp_path / "figures" / "reconstruction.png").stat().st_size > 1000
        assert (tmp_path / "figures" / "reconstruction-step0000006.png").exists()
        expected |= {"val/loss_mean_patch", "val/loss_visible_mean"}
    assert expected <= names
    probed = [step for step, row in logger.rows if "probe/knn" in row]
    assert probed == [0, 3, 6]
    references = {row["probe/knn_untrained"] for _, row in logger.rows if "probe/knn" in row}
    assert references == {logger.rows[0][1]["probe/knn"]}


def test_baselines_are_those_of_the_training_set_and_their_loss_is_logged(tmp_path):
    data = digits()
    objective = tiny_objective("mae", data)
    run = trainer(tmp_path, [LearnBaselines(images=10_000)], max_epochs=1)
    run.fit(objective, datamodule=data)
    train, _ = data.probe_dataloaders(10_000)
    from vitmae.tokens.patches import patchify

    patches = torch.cat([patchify(objective.normalize(batch.images), (2, 2)) for batch in train])
    assert torch.allclose(objective.mean_patch, patches.mean((0, 1)), atol=1e-5)
    assert run.callback_metrics["val/loss_mean_patch"] == pytest.approx(patches.var(dim=(0, 1)).mean().item(), rel=0.1)


def test_held_out_masks_are_fixed_so_an_untrained_model_validates_alike_twice(tmp_path):
    data = digits()
    objective = tiny_objective("mae", data)
    run = trainer(tmp_path, [])
    losses = [run.validate(objective, datamodule=data, verbose=False)[0]["val/loss"] for _ in range(2)]
    assert losses[0] == losses[1]
    smaller = digits(batch_size=50)
    assert run.validate(objective, datamodule=smaller, verbose=False)[0]["val/loss"] == pytest.approx(
        losses[0], rel=1e-5
    )


def test_the_probe_is_the_knn_of_the_checkpoints_features_every_few_epochs_and_at_the_end(tmp_path):
    data, logger = digits(), Kept()
    settings = {"max_epochs": 5, "limit_train_batches": 1, "limit_val_batches": 0, "log_every_n_steps": 1}
    run = trainer(tmp_path, [OnlineProbe(every_n_epochs=2, images=120, k=7)], logger, **settings)
    run.fit(tiny_objective("mae", data), datamodule=data)
    run.save_checkpoint(tmp_path / "last.ckpt")
    logged = {step: row["probe/knn_avg"] for step, row in logger.rows if "probe/knn_avg" in row}
    assert list(logged) == [0, 2, 4, 5]
    for _, row in logger.rows:
        assert row["probe/knn"] == max(row["probe/knn_cls"], row["probe/knn_avg"])

    saved = tiny_objective("mae", data).eval()
    saved.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    vectors, labels = [], []
    for loader in data.probe_dataloaders(120):
        images, named = (torch.cat(part) for part in zip(*[batch[:2] for batch in loader], strict=True))
        with torch.no_grad():
            vectors.append(saved.backbone(saved.normalize(images))[:, 1:].mean(1))
        labels.append(named)

    def votes(distances):
        return np.exp((1 - distances) / 0.07)

    reference = KNeighborsClassifier(7, metric="cosine", algorithm="brute", weights=votes).fit(vectors[0], labels[0])
    assert len(labels[0]) == len(labels[1]) == 120
    assert logged[5] == pytest.approx(reference.score(vectors[1], labels[1]), abs=1e-6)


def test_the_probe_changes_nothing_in_the_run(tmp_path):
    weights = []
    for callbacks in ([], [OnlineProbe(every_n_epochs=1, images=100), LearnBaselines()]):
        torch.manual_seed(0)
        data = digits()
        objective = tiny_objective("mae", data)
        trainer(tmp_path, callbacks).fit(objective, datamodule=data)
        weights.append(torch.cat([p.detach().flatten() for p in objective.parameters()]))
    assert torch.equal(*weights)


def test_a_panel_is_drawn_in_eval_mode_and_the_mode_is_given_back(tmp_path):
    data = digits()
    objective = tiny_objective("mae", data)
    panel, modes = objective.panel, []
    objective.panel = lambda batch: modes.append([part.training for part in objective.modules()]) or panel(batch)
    objective.on_train_epoch_end = lambda: modes.append([objective.training])
    settings = {"max_epochs": 1, "limit_val_batches": 0}
    trainer(tmp_path, [Panels(tmp_path, lambda *args: None, images=2)], **settings).fit(objective, datamodule=data)
    assert not any(modes[0])
    assert modes[1] == [True]


def test_the_references_of_the_probe_survive_a_resume():
    probe, resumed = OnlineProbe(), OnlineProbe()
    probe.references = {"probe/knn_untrained": 0.5}
    resumed.load_state_dict(probe.state_dict())
    assert resumed.references == probe.references


def test_step_values_are_the_mean_over_the_steps_since_the_last_row_and_the_last_step_is_logged(tmp_path):
    data, logger, seen = digits(), Kept(), []
    objective = tiny_objective("mae", data)
    measure = objective.measure

    def recorded(batch):
        metrics = measure(batch)
        if objective.training:
            seen.append(metrics["loss"].item())
        return metrics

    objective.measure = recorded
    trainer(tmp_path, [StepLog()], logger, max_epochs=1, limit_train_batches=5).fit(objective, datamodule=data)
    rows = {step: row["train/loss"] for step, row in logger.rows if "train/loss" in row}
    assert rows == {
        2: pytest.approx(sum(seen[:2]) / 2),
        4: pytest.approx(sum(seen[2:4]) / 2),
        5: pytest.approx(seen[4]),
    }


def test_the_rate_that_is_logged_is_that_of_the_head_which_no_layer_decay_lowers(tmp_path):
    data, logger = digits(), Kept()
    objective = tiny_objective("mae", data)
    objective.optimizer = Recipe(base_lr=1e-2, layer_decay=0.5, warmup_epochs=0)
    settings = {"max_epochs": 1, "limit_train_batches": 4, "limit_val_batches": 0}
    trainer(tmp_path, [StepLog()], logger, **settings).fit(objective, datamodule=data)
    half = 1e-2 * 128 / 256 / 2
    assert {step: row["train/lr"] for step, row in logger.rows} == {2: pytest.approx(half), 4: pytest.approx(0)}
