"""A trained model in Python: `vitmae.load("runs/…")`, then `encode`, `reconstruct`, `predict`.

    image (path, PIL image, array, tensor) -> crop and resize as in evaluation -> normalise as in training -> model

Nothing is masked and nothing is random but the mask that `reconstruct` is asked for.

Shapes: B images, C channels, H W model's image size, N = grid_h * grid_w patches, D width, K classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from vitmae.batch import Batch
from vitmae.errors import UserError
from vitmae.randomness import fold, fold_indices
from vitmae.runs.resume import find_checkpoint
from vitmae.tokens.masking import Mask, draw_mask, mask_from_tensor
from vitmae.tokens.patches import Size
from vitmae.trained.device import find_device
from vitmae.trained.images import Images, See, each
from vitmae.weights.read import local
from vitmae.weights.saved import Saved, crop_pct, read_saved, rebuild

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MaskLike = float | Literal["random", "block", "grid"] | np.ndarray[Any, Any] | Tensor | None
"""A ratio; a kind, at the ratio of the training; or one's own, True where hidden, for the patches (grid_h, grid_w) or
the pixels (H, W), one for all images or one each; None: as in training."""
Pooling = Literal["cls", "avg", "patches"]


@dataclass(frozen=True)
class Reconstruction:
    """Images with a part hidden, and what the model makes of it; pictures are in [0, 1].

    Attributes:
        original: (B, C, H, W).
        masked: what the model saw, grey where hidden.
        prediction: of every patch.
        pasted: the prediction where hidden, the original elsewhere.
        mask: (B, grid_h, grid_w) bool, True where hidden.
        error: (B, grid_h, grid_w) squared error of each patch's prediction in the units of the loss; nan where visible.
        target: one line that says what is predicted.
    """

    original: Tensor
    masked: Tensor
    prediction: Tensor
    pasted: Tensor
    mask: Tensor
    error: Tensor
    target: str

    @property
    def score(self) -> Tensor:
        """Of each image, its mean error over hidden patches: (B,). Large where an image is unlike those trained on."""
        return self.error.nanmean(dim=(1, 2))

    def figure(self) -> "Figure":
        """The four pictures of each image side by side, as a matplotlib figure."""
        from vitmae.plots.reconstruction import reconstruction_figure

        pictures = (self.original, self.masked, self.prediction, self.pasted)
        return reconstruction_figure(*pictures, self.target, max_images=len(self.original))


class Model:
    """A trained model; `vitmae.load` makes it.

    Args:
        saved: what was read.
        device: where it runs.

    Attributes:
        objective: the LightningModule, in eval mode.
        backbone: its encoder.
        class_names: one per class; None where they are not known.
        img_size: (H, W) in pixels: other images are cropped at the centre and resized.
        grid_size: (grid_h, grid_w).
        see: how images are prepared.
    """

    def __init__(self, saved: Saved, device: torch.device) -> None:
        self.objective = rebuild(saved).to(device)
        self.objective.requires_grad_(False)
        self.backbone = self.objective.backbone
        self.class_names: list[str] | None = saved.facts.get("class_names")
        self.img_size: Size = self.backbone.img_size
        self.grid_size: Size = self.backbone.grid_size
        self.see = See(self.img_size, self.backbone.in_chans, crop_pct(saved.settings))
        self.device = device
        self._saved = saved

    def encode(self, images: Images, pooling: Pooling | None = None, batch_size: int = 64) -> Tensor:
        """Encode whole images, nothing hidden: one vector per image, (B, D), or (B, N, D), float32 on the CPU.

        Args:
            images: one or several.
            pooling: ``cls``, the CLS token; ``avg``, the mean of the patches; ``patches``, all of them. None is what a
                classifier's head reads, and for a self-supervised model ``avg``.
            batch_size: images at once.

        Raises:
            UserError: an image cannot be read, or the backbone has no CLS token.
        """
        if pooling not in (None, "cls", "avg", "patches"):
            raise UserError(f"pooling={pooling}: one of cls, avg, patches is wanted")
        if pooling == "cls" and not self.backbone.has_cls:
            raise UserError("pooling=cls: this backbone has no CLS token: use avg")
        return torch.cat([self.encode_batch(batch, pooling) for batch in self._batches(images, batch_size)])

    @torch.no_grad()
    def encode_batch(self, images: Tensor, pooling: Pooling | None = None) -> Tensor:
        """`encode` for images that are prepared: (B, C, H, W) uint8 -> (B, D) or (B, N, D)."""
        latent = self.backbone(self.objective.normalize(images.to(self.device)))  # (B, prefix + N, D)
        if pooling is None and hasattr(self.objective, "pooled"):
            vectors = self.objective.pooled(latent)
        elif pooling == "cls":
            vectors = latent[:, 0]
        else:
            vectors = latent[:, self.backbone.num_prefix_tokens :]  # (B, N, D)
            vectors = vectors if pooling == "patches" else vectors.mean(dim=1)
        return vectors.float().cpu()

    def predict(self, images: Images, top: int = 5) -> list[dict[str, float]]:
        """Classify: for each image its likeliest classes and their probabilities, the likeliest first.

        Args:
            images: one or several.
            top: how many classes.

        Raises:
            UserError: the model has no classifier, or an image cannot be read.
        """
        if not self._saved.is_full or not hasattr(self.objective, "pooled"):
            raise UserError(
                f"{self._saved.path} holds no classifier: train one with model=vit backbone.weights={self._saved.path}"
            )
        names = self.class_names or [str(k) for k in range(self.objective.num_classes)]
        answers = []
        for batch in self._batches(images, 64):
            with torch.no_grad():
                logits = self.objective(self.objective.normalize(batch.to(self.device)))  # (B, K)
            best = logits.float().softmax(dim=1).cpu().topk(min(top, len(names)), dim=1)
            for probabilities, classes in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                answers.append({names[k]: p for k, p in zip(classes, probabilities, strict=True)})
        return answers

    def reconstruct(self, images: Images, mask: MaskLike = None, seed: int = 0) -> Reconstruction:
        """Hide a part of images and predict it from the rest.

        Args:
            images: one or several; all at once, so not thousands.
            mask: what to hide, see `MaskLike`.
            seed: of a mask that is drawn; each image has its own.

        Raises:
            UserError: the model has no trained decoder, the mask does not fit, or an image cannot be read.
        """
        prepared = self.prepare(images)
        keys = fold_indices(fold(seed, "reconstruct"), torch.arange(len(prepared)))
        return self.reconstruct_batch(prepared, self.mask(mask, keys))

    @torch.no_grad()
    def reconstruct_batch(self, images: Tensor, mask: Mask) -> Reconstruction:
        """`reconstruct` for images that are prepared: (B, C, H, W) uint8."""
        self.require_decoder()
        objective = self.objective
        images, mask = images.to(self.device), Mask(*(part.to(self.device) for part in mask))
        unused = torch.zeros(len(images), dtype=torch.int64, device=self.device)
        panel = objective.panel(Batch(images, unused, unused, 0), mask)
        normalized = objective.normalize(images)
        hidden = objective.decoder(objective.encode(normalized, mask), mask, mask.ids_hide)  # (B, N - n, P)
        squared = (hidden.float() - objective.target(normalized, mask.ids_hide)).square().mean(dim=2)
        error = torch.full(mask.mask.shape, float("nan"), device=self.device).scatter(1, mask.ids_hide, squared)
        return Reconstruction(
            panel.original.cpu(),
            panel.masked.cpu(),
            panel.prediction.cpu(),
            panel.pasted.cpu(),
            mask.mask.view(-1, *self.grid_size).cpu(),
            error.view(-1, *self.grid_size).cpu(),
            panel.target,
        )

    def require_decoder(self) -> None:
        """Refuse to reconstruct with a decoder that was never trained.

        Raises:
            UserError: there is none.
        """
        if self._saved.objective != "MAE" or not self._saved.is_full:
            others = {"Supervised": "a classifier", "MaskedPatch": "a masked patch predictor"}
            what = others.get(self._saved.objective, "an encoder alone")
            raise UserError(
                f"{self._saved.path} holds {what}, without a trained decoder: it cannot reconstruct; "
                "use a run of model=mae, or its full export"
            )

    def prepare(self, images: Images) -> Tensor:
        """Images of any kind, decoded, cropped at the centre and resized: (B, C, H, W) uint8.

        An image of exactly the model's size is left as it is.

        Raises:
            UserError: one of them cannot be read.
        """
        return torch.stack([self.see(image, name) for name, image in each(images)])

    def _batches(self, images: Images, batch_size: int) -> Iterator[Tensor]:
        named = each(images)
        for start in range(0, len(named), batch_size):
            yield torch.stack([self.see(image, name) for name, image in named[start : start + batch_size]])

    def mask(self, mask: MaskLike, keys: Tensor) -> Mask:
        """What `mask` means for images with these random keys (B,).

        Raises:
            UserError: the model has no trained decoder, or the mask does not fit.
        """
        self.require_decoder()
        if mask is None or isinstance(mask, str | float | int):
            ratio = self.objective.mask_ratio if mask is None or isinstance(mask, str) else float(mask)
            kind = self.objective.mask_kind if mask is None else mask if isinstance(mask, str) else "random"
            if kind not in ("random", "block", "grid"):
                raise UserError(f"mask={kind}: a ratio, one of random, block, grid, or a mask of your own is wanted")
            if not 0 <= ratio <= 1:  # nor is it nan
                raise UserError(f"mask={mask}: a ratio between 0 and 1 is wanted")
            try:
                return draw_mask(keys, self.grid_size, ratio, kind)
            except UserError as error:
                raise UserError(str(error).replace("model.mask_ratio=", "mask=")) from error
        planes = patch_mask(torch.as_tensor(mask) > 0, self.img_size, self.grid_size)
        return mask_from_tensor(planes.expand(len(keys), -1, -1))


def patch_mask(mask: Tensor, img_size: Size, grid_size: Size) -> Tensor:
    """Which patches a mask hides: of patches (grid_h, grid_w) or pixels (H, W), or (B, …) -> (1 or B, grid_h, grid_w).

    A patch is hidden if any of its pixels is.

    Raises:
        UserError: the mask has another size.
    """
    planes = mask[None] if mask.ndim == 2 else mask
    if planes.ndim == 3 and planes.shape[1:] == grid_size:
        return planes
    if planes.ndim != 3 or planes.shape[1:] != img_size:
        shapes = f"{grid_size} for patches, {img_size} for pixels"
        raise UserError(f"the mask has shape {tuple(mask.shape)}: one of {shapes} is wanted")
    cells = planes.unflatten(1, (grid_size[0], -1)).unflatten(3, (grid_size[1], -1))  # (B, grid_h, ph, grid_w, pw)
    return cells.any(dim=4).any(dim=2)


def find_model(ckpt: str, runs: str) -> Path:
    """The path that a `ckpt` setting means.

    Args:
        ckpt: a run directory (its best checkpoint, else its last), a checkpoint, a bundle or the hub's name of one; or
            ``last`` or ``best``: that checkpoint of the run that was saved last.
        runs: where ``last`` and ``best`` look, at any depth.

    Raises:
        UserError: there is none.
    """
    if not ckpt:
        raise UserError("ckpt= is empty: name a run directory, a checkpoint or a bundle, or last or best")
    if ckpt not in ("last", "best"):
        return local(ckpt)
    try:
        return find_checkpoint(ckpt, Path(runs))
    except UserError as error:
        raise UserError(str(error).replace(", or leave ckpt= out", "")) from error


def open_model(path: str | Path, device: str | torch.device | None = None, trust: Sequence[str] = ()) -> Model:
    """See `vitmae.load`."""
    found = find_device(device)  # before a large file is read
    return Model(read_saved(local(str(path)), trust), found)
