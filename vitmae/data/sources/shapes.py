"""Drawn images: a textured, coloured shape on a textured ground, often with a smaller, other shape behind it.

    (seed, split, index) -> key -> a few numbers that describe the picture -> pixels, and the class of each pixel

A picture is a function on the plane, so one index shows the same scene at every resolution, and the first thousand
images of a large set are those of a set of a thousand. The label is that of the larger shape.

Shapes: B images, C channels, H W height and width. The plane's unit is half of the shorter side.
"""

from functools import partial
from math import pi
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from vitmae.data.splits import Paths, RenderedImages, Splits, Stats
from vitmae.errors import UserError
from vitmae.limits import check_arguments
from vitmae.randomness import fold, fold_each, fold_indices, uniform

CLASSES = ("disc", "ring", "half disc", "crescent", "triangle", "square", "cross", "star")

Count = Annotated[int, Ge(len(CLASSES)), Le(10**8)]
"""Of the images of a split, which has each class once or more."""

_PIECE = 64  # images drawn at once: their planes fit the processor's cache


class Shapes:
    """Shapes to classify and to segment; the classes of a split are of equal size.

    Args:
        num_train: how many training images.
        num_val: how many validation images.
        num_test: how many test images.
        seed: of the pictures; not the run's seed, so runs with different seeds use the same set.
    """

    @check_arguments("data.source")
    def __init__(
        self,
        num_train: Count = 10_000,
        num_val: Count = 2_000,
        num_test: Count = 2_000,
        seed: Annotated[int, Ge(0)] = 0,
    ) -> None:
        self.counts = {"train": num_train, "val": num_val, "test": num_test}
        self.seed = seed

    def took_effect(self) -> dict[str, int]:
        """Settings that are stored under another name, see `vitmae.training.accounting`."""
        return {f"num_{split}": count for split, count in self.counts.items()}

    def load(self, path: Paths, img_size: tuple[int, int], in_chans: int) -> Splits:
        """Describe the splits; images are drawn on request.

        Raises:
            UserError: a path is given, from which nothing would be read.
        """
        if path is not None:
            raise UserError(f"data.path={path}: shapes are drawn, not read: leave it out")
        train, val, test = (
            RenderedImages(
                partial(render, key=fold(self.seed, "shapes", split), size=img_size, in_chans=in_chans),
                labels=torch.arange(count) % len(CLASSES),
                size=img_size,
            )
            for split, count in self.counts.items()
        )
        return Splits(
            train=train,
            val=val,
            test=test,
            class_names=CLASSES,
            stats=Stats((0.499,) * in_chans, (0.260,) * in_chans),  # all channels have the same distribution
            num_mask_classes=1 + len(CLASSES),
        )


def render(indices: Tensor, key: int, size: tuple[int, int], in_chans: int) -> tuple[Tensor, Tensor]:
    """Draw pictures.

    Args:
        indices: (B,) int64, which.
        key: of the set.
        size: (H, W).
        in_chans: C.

    Returns:
        The images (B, C, H, W) uint8, and for each pixel 0 for the ground or 1 + its class (B, H, W) uint8.
    """
    images = torch.empty(len(indices), in_chans, *size, dtype=torch.uint8)
    masks = torch.empty(len(indices), *size, dtype=torch.uint8)
    for start in range(0, len(indices), _PIECE):
        piece = slice(start, start + _PIECE)
        images[piece], masks[piece] = _draw(indices[piece], key, size, in_chans)
    return images, masks


def _draw(indices: Tensor, key: int, size: tuple[int, int], in_chans: int) -> tuple[Tensor, Tensor]:
    unit = min(size) / 2  # in pixels
    y = (torch.arange(size[0]) + 0.5 - size[0] / 2).view(1, -1, 1) / unit
    x = (torch.arange(size[1]) + 0.5 - size[1] / 2).view(1, 1, -1) / unit
    draws = _Draws(fold_indices(key, indices))

    ground = 0.1 + 0.8 * draws.take(in_chans)  # (B, C)
    pixels = _paint(ground, draws, x, y)  # (B, C, H, W)
    masks = torch.zeros(len(indices), *size, dtype=torch.uint8)

    main = indices % len(CLASSES)
    other = (main + 1 + (draws.take(1)[:, 0] * (len(CLASSES) - 1)).long()) % len(CLASSES)
    present = draws.take(1)[:, 0] < 0.5  # of the smaller shapes
    for kind, smallest, largest, seen in ((other, 0.18, 0.28, present), (main, 0.40, 0.75, present | True)):
        radius = smallest + (largest - smallest) * draws.take(1)  # (B, 1)
        room = torch.tensor([size[1] / min(size), size[0] / min(size)]) - radius
        centre = (2 * draws.take(2) - 1) * room  # (B, 2), x and y
        distance = _distance(kind, *_turn(centre, radius, 2 * pi * draws.take(1), x, y))
        distance[~seen] = 1.0
        # At least 0.3 away from the ground in every channel: no shape is invisible.
        colour = (ground + 0.3 + 0.4 * draws.take(in_chans)) % 1
        cover = (0.5 - distance * radius[..., None] * unit).clamp(0, 1)  # (B, H, W): soft edges, a pixel wide
        pixels = torch.lerp(pixels, _paint(colour, draws, x, y), cover[:, None])
        masks = torch.where(distance < 0, (1 + kind).to(torch.uint8)[:, None, None], masks)
    return (pixels * 255).round_().clamp_(0, 255).to(torch.uint8), masks


class _Draws:
    """Uniform numbers of each picture, taken one after the other."""

    def __init__(self, keys: Tensor) -> None:
        self.keys, self.taken = keys, 0

    def take(self, count: int) -> Tensor:
        """The next numbers of each picture: (B, count) in [0, 1)."""
        self.taken += 1
        return uniform(fold_each(self.keys, self.taken), count)


def _paint(colour: Tensor, draws: _Draws, x: Tensor, y: Tensor) -> Tensor:
    """Cover the plane with a colour and a texture, stripes or checks: (B, C) -> (B, C, H, W)."""
    wave = torch.ones(1)
    for second in (False, True):
        frequency, angle, phase, checked = draws.take(4)[..., None, None].unbind(1)  # (B, 1, 1) each
        angle, phase, frequency = 2 * pi * angle, 2 * pi * phase, 4 + 16 * frequency
        ripple = torch.sin(frequency * (torch.cos(angle) * x + torch.sin(angle) * y) + phase)
        wave = wave * torch.where(checked < 0.5, 1.0, ripple) if second else ripple  # (B, H, W)
    contrast = 0.3 * (2 * draws.take(colour.shape[1]) - 1)  # (B, C)
    return colour[..., None, None] + contrast[..., None, None] * wave[:, None]


def _turn(centre: Tensor, radius: Tensor, angle: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The plane in the coordinates of a shape, which is upright at the origin with radius 1: x, y (B, H, W) each."""
    dx = (x - centre[:, 0, None, None]) / radius[..., None]
    dy = (y - centre[:, 1, None, None]) / radius[..., None]
    cosine, sine = torch.cos(angle)[..., None], torch.sin(angle)[..., None]
    return cosine * dx + sine * dy, cosine * dy - sine * dx


def _distance(kind: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The approximate distance of each point from a shape, negative inside: (B,), twice (B, H, W) -> (B, H, W)."""
    distance = torch.empty_like(x)
    for index, name in enumerate(CLASSES):
        rows = (kind == index).nonzero()[:, 0]
        if len(rows):
            distance[rows] = _OUTLINES[name](x[rows], y[rows])
    return distance


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(3**0.5 / 2 * x.abs() + y / 2, -y) - 0.55


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.minimum(torch.maximum(x - 0.3, y - 0.95), torch.maximum(x - 0.95, y - 0.3))


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five points of radius 1.05, dents of radius 0.45, folded onto half of one point."""
    fifth = 2 * pi / 5
    radius = torch.hypot(x, y)
    angle = ((torch.atan2(y, x) % fifth) - fifth / 2).abs()  # 0 at a dent, half a fifth at a point
    point = torch.tensor([1.05 * torch.cos(torch.tensor(fifth / 2)), 1.05 * torch.sin(torch.tensor(fifth / 2))])
    edge = point - torch.tensor([0.45, 0.0])
    edge = edge / edge.norm()
    return (radius * torch.cos(angle) - 0.45) * edge[1] - radius * torch.sin(angle) * edge[0]


_OUTLINES = {
    "disc": lambda x, y: torch.hypot(x, y) - 0.85,
    "ring": lambda x, y: (torch.hypot(x, y) - 0.72).abs() - 0.23,
    "half disc": lambda x, y: torch.maximum(torch.hypot(x, y + 0.4) - 1, -y - 0.4),
    "crescent": lambda x, y: torch.maximum(torch.hypot(x, y) - 0.95, 0.75 - torch.hypot(x - 0.45, y)),
    "triangle": _triangle,
    "square": lambda x, y: torch.maximum(x.abs(), y.abs()) - 0.75,
    "cross": _cross,
    "star": _star,
}
