"""Stronger augmentation for fine-tuning: RandAugment and random erasing of whole batches, on any device.

    draws (a function of the keys) -> which operation on which image, how strong -> each operation once per batch

Shapes: B images, b of them, C channels, H W their size. Images are uint8 before and after.
"""

from collections.abc import Callable
from math import pi
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vitmae.data.crops import first_that_fits, random_boxes
from vitmae.randomness import fold_each, uniform

_GREY = (0.299, 0.587, 0.114)  # ITU-R 601


def augmentation(
    rand_augment: float | None, random_erasing: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """The augmentations that the settings turn on, in order; pixels from outside an image have the data's mean."""
    chosen: list[Callable[[Tensor, Tensor], Tensor]] = []
    if rand_augment is not None:
        chosen.append(RandAugment(rand_augment, fill=mean))
    if random_erasing:
        chosen.append(RandomErasing(random_erasing, mean, std))
    return chosen


class RandAugment:
    """Two random operations, one after the other, each applied with probability 1/2.

    RandAugment (https://arxiv.org/abs/1909.13719) as MAE fine-tunes with it (https://arxiv.org/abs/2111.06377, table
    9): timm's ``rand-m9-mstd0.5-inc1``, 15 operations that all grow with the magnitude.

    Args:
        magnitude: 0 to 10; each image and operation draws its own from a normal distribution around it.
        fill: the value of pixels from outside the image, per channel, in [0, 1].
        std: of that distribution.
        num_ops: how many operations, one after the other.
    """

    def __init__(self, magnitude: float, fill: tuple[float, ...], std: float = 0.5, num_ops: int = 2) -> None:
        self.magnitude, self.std, self.num_ops = magnitude, std, num_ops
        self.fill = torch.tensor(fill).view(-1, 1, 1) * 255

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        """Augment each image by its key: (B, C, H, W) uint8, (B,) int64 on the CPU -> (B, C, H, W) uint8."""
        images = images.clone()
        for layer in range(self.num_ops):
            draws = uniform(fold_each(keys, "randaugment", layer), 5)  # (B, 5)
            normal = (-2 * torch.log1p(-draws[:, 0])).sqrt() * torch.cos(2 * pi * draws[:, 1])
            strength = (self.magnitude + self.std * normal).clamp(0, 10) / 10
            sign = torch.where(draws[:, 2] < 0.5, -1.0, 1.0)
            operation = (draws[:, 3] * len(OPERATIONS)).long().where(draws[:, 4] < 0.5, torch.tensor(-1))
            for index, apply in enumerate(OPERATIONS.values()):
                rows = (operation == index).nonzero()[:, 0]
                if len(rows):
                    amounts = (strength[rows].view(-1, 1, 1, 1), sign[rows].view(-1, 1, 1, 1), self.fill)
                    here = rows.to(images.device)
                    amount = Amount(*(tensor.to(images.device) for tensor in amounts))
                    images[here] = _to_bytes(apply(images[here], amount))
        return images


class RandomErasing:
    """Replace a random box by noise (https://arxiv.org/abs/1708.04896); MAE fine-tunes with probability 0.25.

    Args:
        probability: that a box is drawn, of 2 to 33 % of the image's area. An image stays whole if none of ten draws
            is smaller than the image in both directions.
        mean: of the noise, per channel, of pixels in [0, 1]: the data's.
        std: of the noise, per channel, of pixels in [0, 1].
    """

    def __init__(self, probability: float, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.probability = probability
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) * 255 for values in (mean, std))

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        """Erase by the keys: (B, C, H, W) uint8, (B,) int64 on the CPU -> (B, C, H, W) uint8."""
        keys = fold_each(keys, "erasing")
        rows = (uniform(keys, 1)[:, 0] < self.probability).nonzero()[:, 0]
        channels, height, width = images.shape[1:]
        tall, wide = torch.tensor([[height], [width]]).expand(2, len(rows))
        boxes = random_boxes(keys[rows], tall, wide, (0.02, 1 / 3), (0.3, 1 / 0.3))  # (b, attempts, 4)
        fits = (boxes[..., 2] < height) & (boxes[..., 3] < width)
        chosen = first_that_fits(boxes, fits) * fits.any(dim=1, keepdim=True)  # (b, 4), all 0 erases nothing
        top, left, tall, wide = chosen.to(images.device)[:, :, None].unbind(1)  # (b, 1) each
        y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
        erased = (((y >= top) & (y < top + tall))[:, :, None] & ((x >= left) & (x < left + wide))[:, None])[:, None]
        half = -(-channels * height * width // 2)
        draws = uniform(keys[rows].to(images.device), 2 * half)  # (b, C * H * W), or one more
        radius = (-2 * torch.log1p(-draws[:, :half])).sqrt()
        angle = 2 * pi * draws[:, half:]
        normal = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
        normal = normal[:, : channels * height * width].view(-1, channels, height, width)
        noise = _to_bytes(self.mean.to(images.device) + self.std.to(images.device) * normal)
        images = images.clone()
        here = rows.to(images.device)
        images[here] = torch.where(erased, noise, images[here])
        return images


def _to_bytes(images: Tensor) -> Tensor:
    return images if images.dtype == torch.uint8 else images.clamp(0, 255).to(torch.uint8)


# -- the operations: images (b, C, H, W) uint8 -> uint8, or floats that `_to_bytes` cuts ------------------------------


class Amount(NamedTuple):
    """How strongly an operation is applied.

    Attributes:
        strength: (b, 1, 1, 1) in [0, 1].
        sign: (b, 1, 1, 1), -1 or 1.
        fill: (C, 1, 1), 0 to 255.
    """

    strength: Tensor
    sign: Tensor
    fill: Tensor


def _auto_contrast(images: Tensor) -> Tensor:
    """Stretch each channel to the full range."""
    low, high = images.amin((2, 3), keepdim=True).float(), images.amax((2, 3), keepdim=True).float()
    stretched = (images - low) * (255 / (high - low).clamp(min=1))
    return torch.where(high > low, stretched, images.float())


def _equalize(images: Tensor) -> Tensor:
    """Spread each channel's values evenly, by the integers of Pillow's `ImageOps.equalize`."""
    flat = images.flatten(2).long()  # (b, C, H * W)
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    last = counts.gather(2, flat.amax(2, keepdim=True))  # how many are the brightest
    step = (flat.shape[2] - last) // 255  # (b, C, 1)
    below = counts.cumsum(2) - counts
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(2, flat).view(images.shape).to(torch.uint8)


def _posterize(images: Tensor, amount: Amount) -> Tensor:
    """Keep 4 bits at strength 0, and none at strength 1."""
    dropped = 2 ** (4 + (amount.strength * 4).int())
    return (images // dropped * dropped).to(torch.uint8)


def _solarize(images: Tensor, amount: Amount) -> Tensor:
    """Invert what is brighter than a threshold."""
    return torch.where(images < 256 - (amount.strength * 256).int(), images, 255 - images)


def _solarize_add(images: Tensor, amount: Amount) -> Tensor:
    """Brighten the darker half of the values."""
    return torch.where(images < 128, images + (amount.strength * 110).int(), images.int())


def _sharpen(images: Tensor, amount: Amount) -> Tensor:
    """Blend with a 3 x 3 mean in which the middle has weight 5, or away from it; the border stays."""
    kernel = torch.ones(1, 1, 3, 3, device=images.device)
    kernel[..., 1, 1] = 5
    blurred = images.float()
    inside = F.conv2d(blurred.flatten(0, 1)[:, None], kernel / 13)  # (b * C, 1, H - 2, W - 2)
    blurred[..., 1:-1, 1:-1] = (inside + 0.5).floor().view(*images.shape[:2], *inside.shape[2:])
    return _blend(blurred, images, amount)


def _blend(other: Tensor, images: Tensor, amount: Amount) -> Tensor:
    """From ``other`` (factor 0) to the images (1) and beyond: the factor is 1 +- 0.9 of the strength."""
    factor = (1 + amount.sign * 0.9 * amount.strength).clamp(min=0.1)
    return other + factor * (images - other)


def _grey(images: Tensor) -> Tensor:
    """The brightness of each pixel: (b, C, H, W) -> (b, 1, H, W) float; of other than 3 channels, their mean."""
    if images.shape[1] != 3:
        return images.float().mean(1, keepdim=True)
    weights = torch.tensor(_GREY, device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True).round()


def _mean_grey(images: Tensor) -> Tensor:
    return (_grey(images).mean((2, 3), keepdim=True) + 0.5).floor()


def _rotate(images: Tensor, amount: Amount) -> Tensor:
    """Rotate by up to 30 degrees, counter-clockwise if the sign is positive."""
    angle = amount.sign * amount.strength * (pi / 6)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    return _move(images, amount.fill, [[cosine, -sine, 0.0], [sine, cosine, 0.0]])


def _shear(images: Tensor, amount: Amount, axis: int) -> Tensor:
    """Move each row (axis 0), or column (1), by up to 0.3 of its distance from the upper left corner."""
    slope = 0.3 * amount.sign * amount.strength
    matrix: list[list[Any]] = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    matrix[axis][1 - axis] = slope
    matrix[axis][2] = slope * (images.shape[2 + axis] / 2)
    return _move(images, amount.fill, matrix)


def _translate(images: Tensor, amount: Amount, axis: int) -> Tensor:
    """Move along the rows (axis 0), or columns (1), by up to 0.45 of the image."""
    matrix: list[list[Any]] = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    matrix[axis][2] = 0.45 * amount.sign * amount.strength * images.shape[3 - axis]
    return _move(images, amount.fill, matrix)


def _move(images: Tensor, fill: Tensor, matrix: list[list[Any]]) -> Tensor:
    """Show at each (x, y), in pixels from the middle, the pixel at ``matrix`` @ (x, y, 1): numbers or (b, 1, 1, 1).

    Bicubic with Pillow's filter (a = -1), as in timm's recipe; torch's `grid_sample` has another one (a = -0.75).
    """
    batch, channels, height, width = images.shape
    y, x = (torch.arange(side, device=images.device) + (1 - side) / 2 for side in (height, width))
    x, y = (
        (row[0] * x + row[1] * y[:, None] + row[2] + (side - 1) / 2).expand(batch, 1, height, width)
        for row, side in zip(matrix, (width, height), strict=True)
    )
    inside = (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
    x, y = x.clamp(-0.5, width - 0.5), y.clamp(-0.5, height - 0.5)
    padded = F.pad(images.float(), (2, 3, 2, 3), mode="replicate").flatten(2)  # (b, C, (H + 5) * (W + 5))
    corner = ((y.floor().long() + 1) * (width + 5) + x.floor().long() + 1).flatten(2)  # (b, 1, H * W), of 4 x 4 pixels
    rows = []
    for down in range(4):
        ids = [(corner + down * (width + 5) + right).expand(-1, channels, -1) for right in range(4)]
        rows.append(_cubic([padded.gather(2, each).view(images.shape) for each in ids], x - x.floor()))
    return torch.where(inside, _cubic(rows, y - y.floor()), fill.round())


def _cubic(points: list[Tensor], share: Tensor) -> Tensor:
    """The cubic through four points at a share of the way from the second to the third, Pillow's bicubic filter."""
    before, first, second, after = points
    third = first - before + after - second
    return first + share * (second - before + share * (2 * (before - first) + second - after + share * third))


OPERATIONS: dict[str, Callable[[Tensor, Amount], Tensor]] = {
    "auto_contrast": lambda images, amount: _auto_contrast(images),
    "equalize": lambda images, amount: _equalize(images),
    "invert": lambda images, amount: 255 - images,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "saturation": lambda images, amount: _blend(_grey(images), images, amount),
    "contrast": lambda images, amount: _blend(_mean_grey(images), images, amount),
    "brightness": lambda images, amount: _blend(torch.zeros_like(images), images, amount),
    "sharpness": _sharpen,
    "shear_x": lambda images, amount: _shear(images, amount, 0),
    "shear_y": lambda images, amount: _shear(images, amount, 1),
    "translate_x": lambda images, amount: _translate(images, amount, 0),
    "translate_y": lambda images, amount: _translate(images, amount, 1),
}
