"""A trained model in Python: `vitmae.load("runs/…")`, then `encode`, `reconstruct`, `predict`.

    image (path, PIL image, array, tensor) -> crop and resize as in evaluation -> normalise as in training -> model

Nothing is masked and nothing is random, except in `reconstruct`. Probes use the same class, so they score the features
that a user gets.

Shapes: B images, C channels, H W model's image size, N = grid_h * grid_w patches, D width, K classes.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from annotated_types import Ge
from torch import Tensor

from vitmae.allocator import keep_freed_memory
from vitmae.backbones.blocks import choose_kernels
from vitmae.batch import Batch
from vitmae.errors import UserError
from vitmae.limits import Seed, Text, check_arguments
from vitmae.models.protocols import Classifies, Reconstructs, declared
from vitmae.probes.features import Features, extract_batches
from vitmae.randomness import fold, fold_indices
from vitmae.runs.preflight import resolve_precision
from vitmae.runs.resume import find_checkpoint
from vitmae.tokens.masking import Mask
from vitmae.tokens.patches import Size
from vitmae.trained.device import find_device
from vitmae.trained.images import ImagesLike, Preprocessing, named_images
from vitmae.trained.masks import MaskLike, hidden_patches
from vitmae.trained.reconstruction import Reconstruction
from vitmae.weights.load import load_weights
from vitmae.weights.read import local
from vitmae.weights.saved import Saved, as_weights, build_objective, read_saved, rebuild

Pooling = Literal["cls", "avg", "patches"]
Precision = Literal["auto", "32-true", "bf16-mixed"]

_log = logging.getLogger(__name__)


class Model:
    """A trained model, frozen; `vitmae.load` returns it.

    Args:
        saved: the content of a checkpoint or bundle.
        device: where the model runs.
        precision: 32-true, bf16-mixed, or auto: bf16-mixed where the device computes in it, else 32-true.
        img_size: (H, W) of the images; None: that of the training. Positions are interpolated to another size.
        untrained: take fresh weights, of the same settings and seed, instead of the saved ones.

    Attributes:
        name: "trained" or "untrained".
        saved: the content of a checkpoint or bundle.
        objective: the LightningModule, in eval mode, without gradients.
        backbone: its encoder.
        class_names: one per class; None: not known.
        img_size: (H, W) in pixels; other images are cropped at the centre and resized.
        grid_size: (grid_h, grid_w).
        preprocess: the steps from an image to the model's input, before it is normalised.
        precision: 32-true or bf16-mixed.
        autocast: the dtype of autocast; None: the model computes in float32.

    Raises:
        UserError: the precision does not exist, or the image size is no multiple of the patch size.
    """

    def __init__(
        self,
        saved: Saved,
        device: torch.device,
        precision: Precision = "auto",
        *,
        img_size: Size | None = None,
        untrained: bool = False,
    ) -> None:
        if precision not in get_args(Precision):
            raise UserError(f"precision={precision}: must be one of {', '.join(get_args(Precision))}")
        self.name, self.saved, self.device = "untrained" if untrained else "trained", saved, device
        seen = saved if img_size in (None, saved.img_size) else saved.at_size(img_size)
        self.objective = _build(saved, seen, untrained).eval().requires_grad_(False).to(device)
        self.backbone = self.objective.backbone
        self.class_names: list[str] | None = saved.facts.get("class_names")
        self.img_size: Size = self.backbone.img_size
        self.grid_size: Size = self.backbone.grid_size
        self.preprocess = Preprocessing(self.img_size, self.backbone.in_chans, seen.crop_pct)
        self.precision = str(resolve_precision(precision, device.type))
        self.autocast = torch.bfloat16 if self.precision == "bf16-mixed" else None
        choose_kernels(self.objective, in_cpu_bf16=device.type == "cpu" and self.autocast is not None)
        if device.type == "cpu":
            keep_freed_memory()

    def features(self, batches: Iterable[Batch], patches: bool = False) -> Iterator[Features]:
        """The features for probes, batch by batch, see `vitmae.probes.features.extract_batches`."""
        normalize = self.objective.normalize
        return extract_batches(self.backbone, batches, normalize, patches=patches, autocast=self.autocast)

    @check_arguments()
    def encode(
        self, images: ImagesLike, pooling: Pooling | None = None, batch_size: Annotated[int, Ge(1)] = 64
    ) -> Tensor:
        """Encode whole images -> one vector per image (B, D), or one per patch (B, N, D); float32 on the CPU.

        Args:
            images: one or several.
            pooling: ``cls``: the CLS token; ``avg``: the mean of the patches; ``patches``: all patches. None: the input
                of a classifier's head, or ``avg`` for a self-supervised model.
            batch_size: images per batch.

        Raises:
            UserError: an image cannot be read, or the backbone has no CLS token.
        """
        self._check_pooling(pooling)
        return torch.cat([self.encode_batch(batch, pooling) for batch in self._batches(images, batch_size)])

    @torch.no_grad()
    def encode_batch(self, images: Tensor, pooling: Pooling | None = None) -> Tensor:
        """Like `encode`, for prepared images: (B, C, H, W) uint8 -> (B, D) or (B, N, D)."""
        self._check_pooling(pooling)
        with self._autocast():
            latent = self.backbone(self.objective.normalize(images.to(self.device)))  # (B, prefix + N, D)
            classifier = declared(self.objective, Classifies)
            if pooling is None and classifier is not None:
                return classifier.pooled(latent).float().cpu()
        latent = latent.float()  # before the mean, as for probes
        if pooling == "cls":
            return latent[:, 0].cpu()
        tokens = latent[:, self.backbone.num_prefix_tokens :]  # (B, N, D)
        return (tokens if pooling == "patches" else tokens.mean(dim=1)).cpu()

    def _check_pooling(self, pooling: Pooling | None) -> None:
        if pooling not in (None, *get_args(Pooling)):
            raise UserError(f"pooling={pooling}: must be one of {', '.join(get_args(Pooling))}")
        if pooling == "cls" and not self.backbone.has_cls:
            raise UserError("pooling=cls: this backbone has no CLS token: set pooling=avg")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast, self.autocast is not None)

    @check_arguments()
    def predict(self, images: ImagesLike, top: Annotated[int, Ge(1)] = 5) -> list[dict[str, float]]:
        """For each image, its most likely classes and their probabilities, the most likely first.

        Args:
            images: one or several.
            top: the number of classes; if the model has fewer, all of them.

        Raises:
            UserError: the model has no classifier, or an image cannot be read.
        """
        classifier = declared(self.objective, Classifies)
        if classifier is None or not self.saved.is_full:
            path = self.saved.path
            raise UserError(f"{path} holds no classifier: train one with model=vit backbone.weights={path}")
        names = self.class_names or [str(k) for k in range(classifier.num_classes)]
        answers = []
        for batch in self._batches(images, 64):
            best = self.logits(batch).softmax(dim=1).topk(min(top, len(names)), dim=1)
            for probabilities, classes in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                answers.append({names[k]: p for k, p in zip(classes, probabilities, strict=True)})
        return answers

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """The output of a classifier's head for prepared images: (B, C, H, W) uint8 -> (B, K) float32 on the CPU."""
        with self._autocast():
            logits: Tensor = self.objective(self.objective.normalize(images.to(self.device)))
        return logits.float().cpu()

    @check_arguments()
    def reconstruct(self, images: ImagesLike, mask: MaskLike = None, seed: Seed = 0) -> Reconstruction:
        """Hide a part of images and predict it from the rest.

        Args:
            images: one or several; they are one batch and must fit into memory.
            mask: what to hide, see `MaskLike`.
            seed: the seed of masks that are drawn; each image has its own mask.

        Raises:
            UserError: the model has no trained decoder, the mask does not fit, or an image cannot be read.
        """
        prepared = self.prepare(images)
        keys = fold_indices(fold(seed, "reconstruct"), torch.arange(len(prepared)))
        return self.reconstruct_batch(prepared, self.mask(mask, keys))

    @torch.no_grad()
    def reconstruct_batch(self, images: Tensor, mask: Mask) -> Reconstruction:
        """Like `reconstruct`, for prepared images (B, C, H, W) uint8 and drawn masks (B, N)."""
        objective = self.require_decoder()
        images, mask = images.to(self.device), Mask(*(part.to(self.device) for part in mask))
        unused = torch.zeros(len(images), dtype=torch.int64, device=self.device)
        with self._autocast():
            panel = objective.panel(Batch(images, unused, unused, 0), mask)
            error = objective.errors(self.objective.normalize(images), mask)  # (B, N)
        return Reconstruction(
            panel.original.cpu(),
            panel.masked.cpu(),
            panel.prediction.cpu(),
            panel.pasted.cpu(),
            mask.mask.view(-1, *self.grid_size).cpu(),
            error.float().view(-1, *self.grid_size).cpu(),
            panel.target,
        )

    def require_decoder(self) -> Reconstructs:
        """The objective, if it reconstructs images with a trained decoder.

        Raises:
            UserError: the objective does not reconstruct, or the file holds an encoder alone.
        """
        objective = declared(self.objective, Reconstructs)
        if objective is None or not self.saved.is_full:
            what = f"a run of {self.objective.title}" if self.saved.is_full else "an encoder alone"
            raise UserError(
                f"{self.saved.path} holds {what}, which has no trained decoder and cannot reconstruct; "
                "use a run of model=mae, or its full export"
            )
        return objective

    def mask(self, mask: MaskLike, keys: Tensor) -> Mask:
        """The hidden patches (B, N) that `mask` stands for; drawn masks depend on the images' random keys (B,).

        Raises:
            UserError: the model has no trained decoder, or the mask does not fit.
        """
        return hidden_patches(mask, keys, self.require_decoder(), self.img_size, self.grid_size)

    def prepare(self, images: ImagesLike) -> Tensor:
        """Decode images of any kind, crop them at the centre and resize them, as in evaluation -> (B, C, H, W) uint8.

        Raises:
            UserError: an image cannot be read.
        """
        return torch.stack([self.preprocess(image, name) for name, image in named_images(images)])

    def _batches(self, images: ImagesLike, batch_size: int) -> Iterator[Tensor]:
        named = named_images(images)
        for start in range(0, len(named), batch_size):
            yield torch.stack([self.preprocess(image, name) for name, image in named[start : start + batch_size]])


def _build(saved: Saved, seen: Saved, untrained: bool) -> Any:
    """The objective at the image size of `seen`, with saved weights (interpolated if needed) or fresh ones."""
    if untrained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(saved.settings.get("seed", 0))
            return build_objective(seen)
    if seen is saved:
        return rebuild(saved)
    objective = build_objective(seen)
    report = load_weights(objective, as_weights(saved, str(saved.path)))
    _log.info(
        "trained at %d x %d, used at %d x %d pixels: %.1f%% of the encoder is interpolated, %.1f%% unchanged",
        *saved.img_size,
        *seen.img_size,
        100 * report.share("encoder", "resampled"),
        100 * report.share("encoder", "loaded"),
    )
    return objective


def find_model(ckpt: str, runs: str) -> Path:
    """The path that a `ckpt` setting stands for.

    Args:
        ckpt: a run directory (its best checkpoint, else its last), a checkpoint, a bundle or its name on the hub; or
            ``last`` or ``best``: that checkpoint of the run that was saved last.
        runs: the folder that holds runs, at any depth, for ``last`` and ``best``.

    Raises:
        UserError: no checkpoint or bundle is found.
    """
    if not ckpt:
        raise UserError("ckpt= is empty: name a run directory, a checkpoint or a bundle, or last or best")
    if ckpt not in ("last", "best"):
        return local(ckpt)
    try:
        return find_checkpoint(ckpt, Path(runs))
    except UserError as error:
        raise UserError(str(error).replace(", or leave ckpt= out", "")) from error


@check_arguments()
def open_model(
    path: str | Path,
    device: Text | torch.device | None = None,
    precision: Precision = "auto",
    trust: Sequence[Text] = (),
) -> Model:
    """See `vitmae.load`."""
    if path == "":  # which pathlib reads as the working directory
        raise UserError("path= is empty: name a run directory, a checkpoint or a bundle")
    found = find_device(device)  # before a large file is read
    return Model(read_saved(local(str(path)), trust), found, precision)
