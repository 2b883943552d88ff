"""Whether the encoder has collapsed: two measures without labels, for a run in training and for a checkpoint.

Shapes: M images, D width.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

_ROWS = 8192  # images at a time, so that float64 copies stay small


@torch.no_grad()
def rankme(vectors: Tensor, eps: float = 1e-7) -> float:
    """Effective rank of the features: (M, D) -> a number from 1 to min(M, D), within 1e-3 because of ``eps``.

    exp of the entropy of the singular values, each divided by their sum, plus ``eps`` (the definition of
    RankMe, https://arxiv.org/abs/2210.02885; not centred, as there). Compare it only between runs of the same width on
    the same number of images: a rank cannot exceed M. The paper has M = 25,600.

    The singular values are roots of the eigenvalues of X'X or XX', whichever is smaller, summed in float64:
    constant memory for any M, and exact far below ``eps``.

    Args:
        vectors: any floating type, on any device that has float64.
        eps: makes the logarithm finite; the paper's value for float32 features.

    Returns:
        The rank; 0 if all features are zero, nan if one is not finite, because a monitor must not stop a run.
    """
    images, width = vectors.shape
    if images < width:
        gram = vectors.double() @ vectors.double().T  # (M, M)
    else:
        gram = vectors.new_zeros(width, width, dtype=torch.float64)  # (D, D)
        for rows in vectors.split(_ROWS):
            gram += rows.double().T @ rows.double()
    if not torch.isfinite(gram).all():
        return math.nan
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    if singular.max() == 0:
        return 0.0
    shares = singular / singular.sum() + eps
    return (-(shares * shares.log()).sum()).exp().item()


@torch.no_grad()
def feature_std(vectors: Tensor) -> float:
    """Standard deviation of the features scaled to length 1, mean over the width: (M, D) -> a number.

    1 / sqrt(D) if the features are spread evenly over all directions, 0 if they have collapsed to one
    (SimSiam, https://arxiv.org/abs/2011.10566, §4.1); nan if one is not finite.
    """
    total = vectors.new_zeros(2, vectors.shape[1], dtype=torch.float64)  # sum and sum of squares, (2, D)
    for rows in vectors.split(_ROWS):
        unit = functional.normalize(rows.double())
        total += torch.stack([unit.sum(0), unit.square().sum(0)])
    mean, square = total / len(vectors)
    return (square - mean.square()).clamp_min(0).sqrt().mean().item()
