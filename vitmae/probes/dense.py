"""Dense probe: the class of each pixel, from its patch token by one linear layer.

    patch tokens -> standardised -> linear layer -> logits on the grid -> upsampled to pixels -> softmax

The "linear" protocol of semantic segmentation in DINOv2 (https://arxiv.org/abs/2304.07193): no decoder, bilinear
upsampling of the logits, mean intersection over union.

Shapes: M images, B batch, N = grid_h * grid_w patches, D width, K classes, H W mask height and width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitmae.errors import UserError
from vitmae.probes.confidence import Interval, bootstrap_ratio_interval
from vitmae.probes.features import Features, require_patches
from vitmae.probes.head_training import ROWS, Standardize, Sweep, fit_on_tokens, predict_on_tokens
from vitmae.randomness import generator
from vitmae.tokens.patches import Size

BASE_LRS = (1e-3, 1e-2, 1e-1, 1.0)  # per 256 images, of which a batch of masks holds an eighth
EPOCHS = 20
WARMUP_EPOCHS = 2
BATCH_SIZE = 32
SWEEP = Sweep(BASE_LRS, EPOCHS, WARMUP_EPOCHS, BATCH_SIZE)
IGNORED = 255


@dataclass(frozen=True)
class SegmentedSet:
    """Patch tokens and the class of each pixel.

    Attributes:
        features: with patch tokens (M, N, D) and their grid; image labels are not used.
        masks: (M, H, W), uint8 or int64: the class of each pixel; 255: the pixel is ignored.
    """

    features: Features
    masks: Tensor


@dataclass(frozen=True)
class DenseResult:
    """The result of a dense probe.

    Attributes:
        mean_iou: intersection over union, of all test pixels, averaged over the classes that occur.
        interval: its 95 % interval, by the bootstrap over test images.
        num_images: test images.
        setting: the chosen hyper-parameters.
        validation: mean IoU on the validation split for every candidate learning rate.
    """

    mean_iou: float
    interval: Interval
    num_images: int
    setting: Mapping[str, float]
    validation: Mapping[float, float]


class DenseHead(nn.Module):
    """One linear layer on every patch token.

    Args:
        standardize: applied to the tokens first.
        num_classes: K.
        grid_size: (grid_h, grid_w).
        mask_size: (H, W) of the logits.
        seed: of the initial weights.
    """

    def __init__(
        self, standardize: Standardize, num_classes: int, *, grid_size: Size, mask_size: Size, seed: int = 0
    ) -> None:
        super().__init__()
        self.standardize, self.grid_size, self.mask_size = standardize, grid_size, mask_size
        weight = torch.empty(num_classes, len(standardize.mean))
        self.weight = nn.Parameter(weight.normal_(0, 0.01, generator=generator(seed, "dense")))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits per pixel: (B, N, D) -> (B, K, H, W)."""
        tokens = self.standardize(tokens)
        logits = functional.linear(tokens, self.weight, self.bias)  # (B, N, K)
        logits = logits.transpose(1, 2).unflatten(2, self.grid_size)  # (B, K, grid_h, grid_w)
        return functional.interpolate(logits, self.mask_size, mode="bilinear", align_corners=False)


def dense(
    train: SegmentedSet,
    val: SegmentedSet,
    test: SegmentedSet,
    *,
    sweep: Sweep = SWEEP,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> DenseResult:
    """The whole probe on cached patch tokens: the test IoU of the head that did best on ``val``.

    Args:
        train: the heads are trained on it.
        val: the learning rate is chosen by its mean IoU.
        test: only the chosen head is scored on it. A class that occurs only here has an IoU of 0.
        sweep: the learning rates of AdamW, and how long and on which batches to train.
        seed: of initial weights, order and bootstrap.
        device: where to train; tokens and masks are copied there batch by batch.

    Raises:
        UserError: patch tokens are missing, or masks do not fit the images.
    """
    mask_size = train.masks.shape[1], train.masks.shape[2]
    num_classes = max(_num_classes(part, mask_size) for part in (train, val, test))
    patches = require_patches(train.features)
    standardize, grid_size = Standardize(patches), train.features.grid_size
    if grid_size is None:
        raise UserError("patch tokens have no grid size: extract them again")
    heads = [
        DenseHead(standardize, num_classes, grid_size=grid_size, mask_size=mask_size, seed=seed).to(device)
        for _ in sweep.base_lrs
    ]
    fit_on_tokens(heads, patches, train.masks, pixel_loss, sweep, seed, "dense")
    validation = [mean_iou(*overlaps(head, val)) for head in heads]
    chosen = validation.index(max(validation))
    intersection, union = overlaps(heads[chosen], test)  # (M, K), (M, K)
    return DenseResult(
        mean_iou=mean_iou(intersection, union),
        interval=bootstrap_ratio_interval(intersection, union, seed, "dense"),
        num_images=len(test.masks),
        setting={"base_lr": sweep.base_lrs[chosen]},
        validation=dict(zip(sweep.base_lrs, validation, strict=True)),
    )


def pixel_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean cross-entropy of the pixels that are not ignored: (B, K, H, W), (B, H, W) -> scalar; 0 without any."""
    masks = masks.long()
    total = functional.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="sum")
    return total / (masks != IGNORED).sum().clamp_min(1)


def overlaps(head: nn.Module, part: SegmentedSet) -> tuple[Tensor, Tensor]:
    """Pixels in both mask and prediction, and in one or both, per image and class: (M, K), (M, K) int64 on the CPU.

    Ignored pixels are in neither.
    """
    intersections, unions = [], []
    outputs = predict_on_tokens(head, require_patches(part.features))
    for logits, masks in zip(outputs, part.masks.split(ROWS), strict=True):
        num_classes = logits.shape[1]
        predicted, actual = logits.argmax(1).cpu(), masks.cpu().long()  # (b, H, W)
        counts = actual != IGNORED
        shared = _count(actual, counts & (predicted == actual), num_classes)  # (b, K)
        intersections.append(shared)
        unions.append(_count(actual, counts, num_classes) + _count(predicted, counts, num_classes) - shared)
    return torch.cat(intersections), torch.cat(unions)


def _count(classes: Tensor, where: Tensor, num_classes: int) -> Tensor:
    """Count the chosen pixels of each class in each image: classes, bool where (B, H, W) -> (B, K)."""
    cell = torch.arange(len(classes))[:, None, None] * num_classes + classes
    return cell[where].bincount(minlength=len(classes) * num_classes).view(-1, num_classes)


def mean_iou(intersection: Tensor, union: Tensor) -> float:
    """Intersection over union of all pixels of a set, mean over the classes that occur: (M, K), (M, K) -> [0, 1]."""
    return (intersection.sum(0) / union.sum(0)).nanmean().item()


def _num_classes(part: SegmentedSet, mask_size: Size) -> int:
    """One more than the largest class in the masks.

    Raises:
        UserError: the masks do not fit the images, or all pixels are ignored.
    """
    images = len(require_patches(part.features))
    if part.masks.shape != (images, *mask_size):
        raise UserError(
            f"masks of shape {tuple(part.masks.shape)} do not belong to {images} images with masks of "
            f"{mask_size[0]} x {mask_size[1]}: give every image one mask, all of one size"
        )
    classes = part.masks[part.masks != IGNORED]
    if not len(classes):
        raise UserError("all pixels of the masks are 255, which is ignored: give masks with classes")
    return int(classes.max()) + 1
