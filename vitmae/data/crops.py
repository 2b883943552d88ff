"""The geometry of a batch: a box of each image is resized to the model's size, shifted and flipped.

    boxes (a function of the keys and the image sizes) -> resample -> shift -> flip

Images of one size are cropped together, on their device. Images from files are cropped one by one, in the workers. Both
are resized with the antialiased bicubic filter of the MAE recipe.

Every random number is drawn on the CPU from the samples' keys, so that a crop is the same on any device.

Shapes: B images, C channels, H W their height and width, h w the model's. A box is (top, left, height, width)
in whole pixels.
"""

from dataclasses import dataclass, replace
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from vitmae.randomness import fold_each, uniform

_ATTEMPTS = 10  # as torchvision's RandomResizedCrop
_SMALL = 2**14  # values of an image; up to here, one copy of all images is faster than a copy of each


@dataclass(frozen=True)
class View:
    """How images are cropped, resized and flipped.

    Attributes:
        size: (h, w) in pixels.
        crop: none, the centre as in evaluation; pad, the centre shifted by up to an eighth of the size, over
            black; random_resized, a random box (https://arxiv.org/abs/1409.4842); random_resized_clipped, a random
            box cut at the image's border, as in MAE's published linear probe.
        scale: smallest and largest share of the image's area in a random box.
        ratio: smallest and largest width / height of a random box.
        hflip: mirror an image with probability 1/2.
        crop_pct: the share of an image's shorter side that the centre keeps.
    """

    size: tuple[int, int]
    crop: str = "none"
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: bool = False
    crop_pct: float = 1.0

    def for_evaluation(self) -> "View":
        """The same view without anything random."""
        return replace(self, crop="none", hflip=False)

    def boxes(self, keys: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
        """The box of each image: keys, heights, widths (B,) int64 -> (B, 4) int64."""
        if self.crop == "random_resized":
            return random_resized_boxes(keys, heights, widths, self.scale, self.ratio)
        if self.crop == "random_resized_clipped":
            return clipped_boxes(keys, heights, widths, self.scale, self.ratio)
        return central_boxes(heights, widths, self.size, self.crop_pct)

    def move(self, images: Tensor, keys: Tensor) -> Tensor:
        """Shift and flip resized images: (B, C, h, w), keys (B,) -> (B, C, h, w); may change ``images``."""
        if self.crop == "pad":
            images = shift(images, keys, max(1, min(self.size) // 8))
        if self.hflip:
            images = mirror(images, uniform(fold_each(keys, "hflip"), 1)[:, 0] < 0.5)
        return images

    def apply(self, images: Tensor, keys: Tensor) -> Tensor:
        """Crop, resize and flip images of one size: (B, C, H, W) uint8, keys (B,) -> (B, C, h, w); may change them."""
        height, width = images.shape[2:]
        boxes = self.boxes(keys, *torch.tensor([[height], [width]]).expand(2, len(images)))
        return self.move(resample(images, boxes, self.size), keys)


def central_boxes(heights: Tensor, widths: Tensor, size: tuple[int, int], crop_pct: float) -> Tensor:
    """The largest centred box with the shape of ``size``, times ``crop_pct``: (B,), (B,) -> (B, 4) int64.

    The same as resizing the shorter side to ``size / crop_pct`` and cropping the centre.
    """
    # pixels of the image per pixel of the view
    pixels = torch.minimum(heights / size[0], widths / size[1]) * crop_pct
    boxed = [(side * pixels).round().long().clamp(min=1) for side in size]
    return torch.stack([(heights - boxed[0]) // 2, (widths - boxed[1]) // 2, *boxed], dim=1)


def random_resized_boxes(
    keys: Tensor, heights: Tensor, widths: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """A random box, its share of the area and its shape in the given ranges: three (B,) int64 -> (B, 4).

    The first of ten draws that fits the image; if none does, the largest centred box of an allowed shape.
    """
    boxes = random_boxes(keys, heights, widths, scale, ratio)
    tall, wide = boxes[..., 2], boxes[..., 3]  # (B, attempts)
    fits = (tall > 0) & (tall <= heights[:, None]) & (wide > 0) & (wide <= widths[:, None])
    wide = torch.minimum(widths, (heights * ratio[1]).round().long()).clamp(min=1)
    tall = torch.minimum(heights, (widths / ratio[0]).round().long()).clamp(min=1)
    centre = torch.stack([(heights - tall) // 2, (widths - wide) // 2, tall, wide], dim=1)
    return torch.where(fits.any(dim=1, keepdim=True), first_that_fits(boxes, fits), centre)


def clipped_boxes(
    keys: Tensor, heights: Tensor, widths: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """A random box, each side cut to that of the image, then placed at random: three (B,) int64 -> (B, 4).

    One draw, never another: the crop of MAE's published linear probe, which is that of BYOL.
    """
    draws = uniform(fold_each(keys, "crop"), 4)
    tall, wide = _sides(draws, heights * widths, scale, ratio)
    tall, wide = torch.minimum(tall.clamp(min=1), heights), torch.minimum(wide.clamp(min=1), widths)
    top, left = (draws[:, 2] * (heights - tall + 1)).long(), (draws[:, 3] * (widths - wide + 1)).long()
    return torch.stack([top, left, tall, wide], dim=1)


def random_boxes(
    keys: Tensor, heights: Tensor, widths: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Ten random boxes per image, some of which may not fit it: three (B,) int64 -> (B, attempts, 4)."""
    draws = uniform(fold_each(keys, "crop"), 4 * _ATTEMPTS).view(-1, _ATTEMPTS, 4)
    height, width = heights[:, None], widths[:, None]  # (B, 1)
    tall, wide = _sides(draws, height * width, scale, ratio)  # (B, attempts)
    top = (draws[..., 2] * (height - tall + 1)).long()
    left = (draws[..., 3] * (width - wide + 1)).long()
    return torch.stack([top, left, tall, wide], dim=2)


def first_that_fits(boxes: Tensor, fits: Tensor) -> Tensor:
    """The first box of each image that fits; of none, the first: (B, attempts, 4), (B, attempts) bool -> (B, 4)."""
    return boxes[torch.arange(len(boxes)), fits.int().argmax(dim=1)]


def _sides(
    draws: Tensor, area: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Height and width of random boxes: draws (..., 4) in [0, 1), area of the image (...) -> two (...) int64."""
    part = area * (scale[0] + (scale[1] - scale[0]) * draws[..., 0])
    shape = torch.exp(log(ratio[0]) + (log(ratio[1]) - log(ratio[0])) * draws[..., 1])
    return (part / shape).sqrt().round().long(), (part * shape).sqrt().round().long()


def resample(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a box of each image, all at once: (B, C, H, W) uint8, (B, 4) int64 -> (B, C, h, w) uint8.

    Bicubic (a = -0.5), antialiased: two products with the filter's matrices; `resize_box` up to rounding.
    """
    height, width = images.shape[2:]
    if (height, width) == size and bool((boxes == torch.tensor([0, 0, height, width])).all()):
        return images
    seen = images.new_empty(*images.shape[:2], *size)
    # on a CPU, pieces whose floats fit the cache take a third of the time
    piece = 64 if images.device.type == "cpu" else len(images)
    for start in range(0, len(images), piece):
        part = slice(start, start + piece)
        top, left, tall, wide = boxes[part].to(images.device).unbind(1)
        rows = _filter_matrix(top, tall, height, size[0])  # (b, h, H)
        columns = _filter_matrix(left, wide, width, size[1])  # (b, w, W)
        with torch.autocast(images.device.type, enabled=False):  # bytes need more than bf16's 8 bits
            pixels = torch.einsum("bhH,bcHW,bwW->bchw", rows, images[part].float(), columns)
        seen[part] = pixels.round_().clamp_(0, 255)
    return seen


def _filter_matrix(start: Tensor, length: Tensor, count: int, size: int) -> Tensor:
    """The weights of ``count`` pixels of a line in each of ``size`` pixels: start, length (B,) -> (B, size, count).

    Keys' cubic convolution (IEEE ASSP 29, 1981), stretched if the line shrinks. Pixels outside the box have weight 0.
    """
    line = torch.arange(count, device=start.device) + 0.5  # (count,)
    step = length / size  # (B,)
    centres = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * step[:, None]
    x = (line - centres[..., None]).abs_() / step.clamp(min=1)[:, None, None]
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    inside = (line > start[:, None]) & (line < (start + length)[:, None])
    weights = weights * inside[:, None]
    return weights / weights.sum(dim=2, keepdim=True)


def resize_box(image: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a box of one image: (C, H, W) uint8, (4,) int64 -> (C, h, w) uint8; bicubic, antialiased."""
    top, left, height, width = box.tolist()
    image = image[:, top : top + height, left : left + width]
    if (height, width) == size:
        return image
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0]


def resize_mask(mask: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """The class at the middle of each pixel of the view: (H, W) integers, (4,) int64 -> (h, w)."""
    top, left, height, width = box.tolist()
    rows = top + ((torch.arange(size[0]) + 0.5) * (height / size[0])).long()
    columns = left + ((torch.arange(size[1]) + 0.5) * (width / size[1])).long()
    return mask[rows[:, None], columns]


def shift(images: Tensor, keys: Tensor, most: int) -> Tensor:
    """Move each image by up to ``most`` pixels, over black: (B, C, h, w), (B,) -> (B, C, h, w)."""
    height, width = images.shape[2:]
    down, right = (uniform(fold_each(keys, "shift"), 2) * (2 * most + 1)).long().to(images.device).unbind(1)
    padded = F.pad(images, (most, most, most, most))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2m + 1, 2m + 1, h, w)
    return windows[torch.arange(len(images), device=images.device), :, down, right]


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """Flip the chosen images left to right: (B, C, h, w), (B,) bool -> (B, C, h, w); may change ``images``."""
    if images[0].numel() > _SMALL:
        for row in chosen.nonzero()[:, 0].tolist():
            images[row] = images[row].flip(-1)
        return images
    # for small images, both versions are made and one is chosen: a few long copies are faster than many short ones
    row = torch.arange(len(images)) + len(images) * chosen
    return torch.cat([images, images.flip(-1)]).index_select(0, row.to(images.device))
