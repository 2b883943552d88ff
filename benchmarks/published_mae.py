"""Training steps of the published masked autoencoder, written down from the paper: `make parity` compares with it.

Nothing of this project or of timm is used here, only tensor operations, as https://arxiv.org/abs/2111.06377 and its
published code define the model, the loss and the recipe: no module, no optimiser of torch, no shared function.

Shapes: B images of C x H x W, N patches, n visible, T tokens, D width, h heads. Weights are a dict with this project's
names.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model on square images.

    Attributes:
        patch: side of a patch.
        side: patches per side.
        heads: of the encoder.
        decoder_heads: of the decoder.
        depth: blocks of the encoder.
        decoder_depth: blocks of the decoder.
    """

    patch: int
    side: int
    heads: int
    decoder_heads: int
    depth: int
    decoder_depth: int


def loss(w: Weights, shape: Shape, images: Tensor, noise: Tensor, mask_ratio: float, norm_pix_loss: bool) -> Tensor:
    """The loss of a batch: normalised images (B, C, H, W), noise (B, N) -> scalar. The smallest noise stays visible."""
    patches = _cut(images, shape)  # (B, N, p, p, C)
    batch, count = noise.shape
    order = noise.argsort(dim=1)
    keep = int(count * (1 - mask_ratio))
    rows = torch.arange(batch)[:, None]

    kernel = w["backbone.vit.patch_embed.proj.weight"].permute(0, 2, 3, 1).flatten(1)  # (D, p * p * C)
    tokens = patches.flatten(2) @ kernel.T + w["backbone.vit.patch_embed.proj.bias"]  # (B, N, D)
    tokens = tokens + positions(shape.side, tokens.shape[2])
    cls = w["backbone.vit.cls_token"].expand(batch, -1, -1)  # its position is 0
    tokens = torch.cat([cls, tokens[rows, order[:, :keep]]], dim=1)  # (B, 1 + n, D)
    for i in range(shape.depth):
        tokens = _block(tokens, w, f"backbone.vit.blocks.{i}.", shape.heads)
    tokens = _affine(_norm(tokens, w, "backbone.vit.norm"), w, "decoder.embed")  # (B, 1 + n, E)

    width = tokens.shape[2]
    full = w["decoder.mask_token"].expand(batch, count, -1).clone()
    full[rows, order[:, :keep]] = tokens[:, 1:]
    tokens = torch.cat([tokens[:, :1], full + positions(shape.side, width)], dim=1)  # (B, 1 + N, E)
    for i in range(shape.decoder_depth):
        tokens = _block(tokens, w, f"decoder.blocks.{i}.", shape.decoder_heads)
    predicted = _affine(_norm(tokens, w, "decoder.norm"), w, "decoder.pred")[:, 1:]  # (B, N, p * p * C)

    target = patches.flatten(2)
    if norm_pix_loss:
        centred = target - target.mean(dim=2, keepdim=True)
        variance = (centred**2).sum(dim=2, keepdim=True) / (target.shape[2] - 1)
        target = centred / (variance + 1e-6) ** 0.5
    error = ((predicted - target) ** 2).mean(dim=2)  # (B, N)
    hidden = torch.ones(batch, count, dtype=error.dtype)
    hidden[rows, order[:, :keep]] = 0
    return (error * hidden).sum() / hidden.sum()


def positions(side: int, width: int) -> Tensor:
    """Fixed positions (N, D): the first half is of the column, the second of the row, each [sin, cos]; in float32."""
    quarter = width // 4
    table = torch.empty(side * side, width, dtype=torch.float64)
    for row in range(side):
        for column in range(side):
            for i in range(quarter):
                omega = 10000.0 ** (-i / quarter)
                for half, place in ((0, column), (2 * quarter, row)):
                    table[row * side + column, half + i] = math.sin(place * omega)
                    table[row * side + column, half + quarter + i] = math.cos(place * omega)
    return table.float().double()  # the published code keeps them in float32


@dataclass
class AdamW:
    """https://arxiv.org/abs/1711.05101 with the recipe of MAE's pre-training; changes the weights in place.

    The rate rises linearly from 0 in each step, then falls as half a cosine. Vectors are not decayed, all else is.

    Attributes:
        weights: what is trained, leaf tensors.
        peak_lr: the largest rate.
        warmup: steps of warm-up.
        total: steps of the run.
        weight_decay: of tensors with two dimensions and more.
    """

    weights: dict[str, Tensor]
    peak_lr: float
    warmup: int
    total: int
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    done: int = 0

    def __post_init__(self) -> None:
        """Start both moments at 0."""
        self.first, self.second = ({k: torch.zeros_like(v) for k, v in self.weights.items()} for _ in range(2))

    @property
    def lr(self) -> float:
        """The rate of the next step."""
        if self.done < self.warmup:
            return self.peak_lr * self.done / self.warmup
        return self.peak_lr * 0.5 * (1 + math.cos(math.pi * (self.done - self.warmup) / (self.total - self.warmup)))

    def step(self, value: Tensor) -> None:
        """One step down the gradient of a loss."""
        gradients = torch.autograd.grad(value, list(self.weights.values()))
        lr, (beta1, beta2) = self.lr, self.betas
        self.done += 1
        with torch.no_grad():
            for (name, weight), gradient in zip(self.weights.items(), gradients, strict=True):
                if weight.ndim > 1:
                    weight.mul_(1 - lr * self.weight_decay)
                first, second = self.first[name], self.second[name]
                first.copy_(beta1 * first + (1 - beta1) * gradient)
                second.copy_(beta2 * second + (1 - beta2) * gradient**2)
                mean, square = first / (1 - beta1**self.done), second / (1 - beta2**self.done)
                weight.sub_(lr * mean / (square.sqrt() + self.eps))


def _cut(images: Tensor, shape: Shape) -> Tensor:
    """(B, C, H, W) -> (B, N, p, p, C)."""
    side, patch = shape.side, shape.patch
    grid = images.reshape(len(images), -1, side, patch, side, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(1, 2)


def _block(x: Tensor, w: Weights, at: str, heads: int) -> Tensor:
    """A transformer block with the norms first: (B, T, D) -> (B, T, D)."""
    batch, count, width = x.shape
    q, k, v = _affine(_norm(x, w, at + "norm1"), w, at + "attn.qkv").split(width, dim=2)
    q, k, v = (part.view(batch, count, heads, -1).transpose(1, 2) for part in (q, k, v))  # (B, h, T, D / h)
    scores = q @ k.transpose(2, 3) / (width // heads) ** 0.5
    mixed = (scores.softmax(dim=3) @ v).transpose(1, 2).reshape(batch, count, width)
    x = x + _affine(mixed, w, at + "attn.proj")
    hidden = _affine(_norm(x, w, at + "norm2"), w, at + "mlp.fc1")
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return x + _affine(hidden, w, at + "mlp.fc2")


def _norm(x: Tensor, w: Weights, at: str) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / ((centred**2).mean(dim=-1, keepdim=True) + 1e-6) ** 0.5
    return scaled * w[at + ".weight"] + w[at + ".bias"]


def _affine(x: Tensor, w: Weights, at: str) -> Tensor:
    return x @ w[at + ".weight"].T + w[at + ".bias"]
