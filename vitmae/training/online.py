"""Measurements during training: a kNN probe on frozen features, reconstruction panels, trivial baselines."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge
from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch.nn import functional as F

from vitmae.batch import Batch
from vitmae.models.objective import as_objective
from vitmae.models.protocols import DrawsPanel, HasBaselines, declared
from vitmae.plots.reconstruction import reconstruction_figure
from vitmae.probes.collapse import feature_std, rankme
from vitmae.probes.features import Features, extract
from vitmae.probes.knn import knn
from vitmae.training.averaging import averaged

FigureLog = Callable[[str, Figure, int], None]


class LearnBaselines(Callback):
    """Before the first validation, measures what the trivial predictions of a masked objective need.

    Args:
        images: how many training images are used.
    """

    def __init__(self, images: int = 2048) -> None:
        self.images = images

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand unaugmented training images to the objective."""
        learner = declared(pl_module, HasBaselines)
        if learner is not None:
            train, _ = trainer.datamodule.probe_dataloaders(self.images)  # type: ignore[attr-defined]
            learner.learn_baselines(_on_device(train, pl_module))


class OnlineProbe(Callback):
    """Every few epochs, classifies held-out images by their neighbours among training images.

    Features are those of the frozen backbone with nothing hidden. A low accuracy is not a bug: MAE features are not
    made for kNN (ImageNet, ViT-B, 100 epochs: 11 %). So two references are logged beside it, measured once at step 0
    on the same images: the untrained backbone (``probe/knn_untrained``) and raw pixels (``probe/knn_pixels``; larger
    images are shrunk to 32 pixels).

    Args:
        every_n_epochs: how often; always also after the last epoch.
        images: how many labelled training images are in the bank.
        k: neighbours.
    """

    def __init__(
        self,
        every_n_epochs: Annotated[int, Ge(1)] = 10,
        images: Annotated[int, Ge(1)] = 10_000,
        k: Annotated[int, Ge(1)] = 20,
    ) -> None:
        self.every_n_epochs, self.images, self.k = every_n_epochs, images, k
        self.references: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the references, once."""
        if trainer.global_step == 0:
            self._probe(trainer, pl_module)

    def state_dict(self) -> dict[str, float]:
        """The references: a resumed run cannot measure them again, because its backbone is trained."""
        return self.references

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Restore the references."""
        self.references = dict(state_dict)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure if it is due."""
        if is_due(trainer, self.every_n_epochs):
            self._probe(trainer, pl_module)

    def _probe(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data.num_classes is not None and trainer.is_global_zero:
            autocast = torch.bfloat16 if "bf16" in str(trainer.precision) else None
            loaders = data.probe_dataloaders(self.images)
            objective = as_objective(pl_module)
            encode = partial(extract, objective.backbone, normalize=objective.normalize, autocast=autocast)
            with averaged(trainer, pl_module):
                train, held_out = (encode(loader) for loader in loaders)
            values = {f"probe/knn_{pooling}": value for pooling, value in self._accuracy(train, held_out).items()}
            values["probe/knn"] = max(values.values())
            if trainer.global_step == 0:
                pixels = self._accuracy(*(_pixels(loader) for loader in loaders))
                self.references = {"probe/knn_untrained": values["probe/knn"], "probe/knn_pixels": pixels["pixels"]}
            values |= self.references
            for pooling, vectors in held_out.pooled.items():
                values[f"probe/rankme_{pooling}"] = rankme(vectors)
                values[f"probe/feature_std_{pooling}"] = feature_std(vectors)
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        trainer.strategy.barrier("probe")

    def _accuracy(self, train: Features, held_out: Features) -> dict[str, float]:
        """The share of held-out images that their neighbours classify correctly, per pooling."""
        k = min(self.k, len(train))
        return {pooling: by_k[k].accuracy for pooling, by_k in knn(train, held_out, ks=[k]).items()}


def _pixels(batches: Iterable[Batch]) -> Features:
    """Raw pixels as features; larger images are shrunk to 32 pixels."""
    vectors, labels = [], []
    for batch in batches:
        size = [min(side, 32) for side in batch.images.shape[2:]]
        vectors.append(F.interpolate(batch.images.float(), size, mode="area").flatten(1))
        labels.append(batch.labels)
    return Features({"pixels": torch.cat(vectors)}, torch.cat(labels))


class Panels(Callback):
    """Every few epochs, draws reconstructions of the same held-out images, for the run directory and the loggers.

    Args:
        folder: of the pictures.
        log: logs a figure under a name, at a step.
        every_n_epochs: how often; always also after the last epoch.
        images: how many.
    """

    def __init__(
        self,
        folder: Path,
        log: FigureLog,
        every_n_epochs: Annotated[int, Ge(1)] = 10,
        images: Annotated[int, Ge(1)] = 8,
    ) -> None:
        self.folder, self.log_figure, self.every_n_epochs, self.images = folder, log, every_n_epochs, images

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw if it is due."""
        artist = declared(pl_module, DrawsPanel)
        if artist is not None and trainer.is_global_zero and is_due(trainer, self.every_n_epochs):
            self._draw(trainer, pl_module, artist)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, artist: DrawsPanel) -> None:
        """Draw the panel of the first held-out images; `artist` is the module under its protocol."""
        _, held_out = trainer.datamodule.probe_dataloaders(self.images)  # type: ignore[attr-defined]
        batch = next(_on_device(held_out, pl_module))
        batch = Batch(batch.images[: self.images], batch.labels[: self.images], batch.keys[: self.images], batch.key)
        training = pl_module.training
        pl_module.eval()
        with averaged(trainer, pl_module), trainer.precision_plugin.forward_context():
            panel = artist.panel(batch)
        pl_module.train(training)
        figure = reconstruction_figure(*panel)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"reconstruction-step{trainer.global_step:07d}.png"
        figure.savefig(path, dpi=150)
        figure.savefig(self.folder / "reconstruction.png", dpi=150)
        self.log_figure("reconstruction", figure, trainer.global_step)


def is_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Whether this epoch is the last of the run, or its number a multiple of ``every_n_epochs``."""
    is_last = trainer.should_stop or trainer.global_step >= trainer.estimated_stepping_batches
    return is_last or (trainer.current_epoch + 1) % every_n_epochs == 0


def _on_device(batches: Iterable[Batch], pl_module: LightningModule) -> Iterator[Batch]:
    for batch in batches:
        device = pl_module.device
        yield Batch(batch.images.to(device), batch.labels.to(device), batch.keys.to(device), batch.key)
