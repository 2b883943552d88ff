"""Masked patch prediction (https://arxiv.org/abs/2010.11929, section 4.6 and appendix B.1.2).

    images -> patch embeddings -> corrupt half of them -> encoder -> head -> what the corrupted patches looked like

BERT's objective on patches. The encoder sees the full length; there is no decoder. Only corrupted patches are scored.

Shapes: B batch, C channels, H W image, N patches, k corrupted patches, D width, M predictions per patch, K colour bins,
P = patch_h * patch_w * C.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from vitmae.backbones.backbone import Backbone, all_ids, patch_length
from vitmae.batch import Batch
from vitmae.errors import UserError
from vitmae.limits import check_arguments
from vitmae.models.baselines import (
    class_frequencies,
    classification_baselines,
    mean_over_patches,
    regression_baselines,
)
from vitmae.models.objective import Objective
from vitmae.models.protocols import DrawsPanel, HasBaselines, Panel
from vitmae.recipe import Recipe
from vitmae.tokens.masking import Corruption, corrupt, draw_corruption, num_visible
from vitmae.tokens.patches import gather_tokens, patchify, unpatchify

PatchTarget = Literal["mean_color", "downsampled_color", "pixels"]

_LEVELS = 8  # 3 bits per channel
_CELLS = 4  # downsampled_color predicts a 4 x 4 miniature


class MaskedPatch(Objective, DrawsPanel, HasBaselines):
    """Predict what each corrupted patch looked like, from its own output token.

    Args:
        backbone: the encoder.
        optimizer: the recipe.
        mean: see `Objective`.
        std: see `Objective`.
        mask_ratio: share of patch embeddings that is corrupted.
        target: ``mean_color``, the patch's mean colour in 3 bits per channel, one K-way classification with
            K = 8^C (the paper's final choice); ``downsampled_color``, the same for each pixel of a 4 x 4 miniature;
            ``pixels``, regression of the whole patch. Pixels are those of [0, 1], never normalised.

    Raises:
        UserError: the ratio corrupts all patches or none, or the images cannot have this target.
    """

    title = "masked patch prediction"
    paper = "https://arxiv.org/abs/2010.11929"
    constant: Tensor

    @check_arguments("model")
    def __init__(
        self,
        backbone: Backbone,
        optimizer: Recipe,
        mean: Sequence[float],
        std: Sequence[float],
        mask_ratio: Annotated[float, Gt(0), Lt(1)] = 0.5,
        target: PatchTarget = "mean_color",
    ) -> None:
        super().__init__(backbone, optimizer, mean, std)
        self.num_hidden = backbone.num_patches - num_visible(backbone.num_patches, mask_ratio)
        self.mask_ratio, self.target_kind = mask_ratio, target
        self.num_bins = _LEVELS**backbone.in_chans
        if target != "pixels" and backbone.in_chans > 4:
            raise UserError(
                f"model.target={target} has 8^C classes, too many for {backbone.in_chans} channels: "
                "use model.target=pixels"
            )
        if target == "downsampled_color" and min(backbone.patch_size) < _CELLS:
            raise UserError(
                f"model.target=downsampled_color needs patches of 4 pixels and more, not "
                f"{backbone.patch_size[0]}x{backbone.patch_size[1]}: use model.target=mean_color"
            )
        num_outputs = {
            "mean_color": self.num_bins,
            "downsampled_color": _CELLS * _CELLS * self.num_bins,
            "pixels": patch_length(backbone),
        }[target]
        self.mask_token = nn.Parameter(torch.zeros(1, 1, backbone.embed_dim))
        self.head = nn.Linear(backbone.embed_dim, num_outputs)
        for parameter in (self.mask_token, self.head.weight):
            nn.init.normal_(parameter, std=0.02)
        nn.init.zeros_(self.head.bias)
        constant = patch_length(backbone) if target == "pixels" else self.num_bins
        self.register_buffer("constant", torch.zeros(constant))

    def took_effect(self) -> dict[str, str]:
        """The target; as an attribute it would hide the method of this name."""
        return {"target": self.target_kind}

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """The loss over the corrupted patches of the batch, and their accuracy if the target is a class."""
        corruption = draw_corruption(batch.keys, self.backbone.num_patches, self.mask_ratio)
        logits = self.predict(self.normalize(batch.images), corruption, corruption.ids).float()
        target = self.target(batch.images)  # (B, N, M) or (B, N, P)
        hidden = gather_tokens(target, corruption.ids)  # (B, k, M) or (B, k, P)
        if self.target_kind == "pixels":
            metrics = {"loss": (logits - hidden).square().mean()}
        else:
            logits = logits.unflatten(2, (-1, self.num_bins))  # (B, k, M, K)
            metrics = {
                "loss": F.cross_entropy(logits.flatten(0, 2), hidden.flatten()),
                "acc1": (logits.argmax(dim=-1) == hidden).float().mean(),
            }
        return metrics if self.training else metrics | self.baselines(target, corruption, hidden)

    def predict(self, images: Tensor, corruption: Corruption, ids: Tensor) -> Tensor:
        """The head's output at `ids`: normalised images (B, C, H, W), ids (B, k) -> (B, k, outputs)."""
        tokens = self.backbone.patch_embed(images)  # (B, N, D)
        tokens = corrupt(tokens, corruption, self.mask_token) + self.backbone.pos_embed
        return self.head(self.backbone.encode(tokens, self.backbone.num_prefix_tokens + ids))

    def target(self, images: Tensor) -> Tensor:
        """What each patch looks like: uint8 (B, C, H, W) -> classes (B, N, M), or pixels in [0, 1] (B, N, P)."""
        images = images.float() / 255
        grid_h, grid_w = self.backbone.grid_size
        if self.target_kind == "pixels":
            return patchify(images, self.backbone.patch_size)
        cells = _CELLS if self.target_kind == "downsampled_color" else 1
        colors = F.interpolate(images, size=(grid_h * cells, grid_w * cells), mode="area")
        levels = (colors * _LEVELS).floor().clamp(max=_LEVELS - 1).long()  # (B, C, grid_h * cells, grid_w * cells)
        classes = levels[:, :1] * 0
        for channel in range(levels.shape[1]):
            classes = classes * _LEVELS + levels[:, channel : channel + 1]
        return patchify(classes, (cells, cells))  # (B, N, M)

    def baselines(self, target: Tensor, corruption: Corruption, hidden: Tensor) -> dict[str, Tensor]:
        """The losses of two trivial predictions on the same corrupted patches, see `vitmae.models.baselines`."""
        intact = (~corruption.mask).nonzero()[:, 1].view(len(target), -1)  # (B, N - k)
        visible = gather_tokens(target, intact)
        if self.target_kind == "pixels":
            return regression_baselines(visible, hidden, self.constant, self.backbone.in_chans)
        return classification_baselines(visible, hidden, self.constant)

    def learn_baselines(self, batches: Iterable[Batch]) -> None:
        """Measure the mean patch, or the frequency of each class, of the training set."""
        targets = (self.target(batch.images) for batch in batches)
        constant = (
            mean_over_patches(targets) if self.target_kind == "pixels" else class_frequencies(targets, self.num_bins)
        )
        self.constant.copy_(constant)

    @torch.no_grad()
    def panel(self, batch: Batch) -> Panel:
        """What a reconstruction picture shows; a class is painted in the middle colour of its bin."""
        backbone = self.backbone
        corruption = draw_corruption(batch.keys, backbone.num_patches, self.mask_ratio)
        output = self.predict(
            self.normalize(batch.images), corruption, all_ids(batch.images, backbone)
        ).float()  # (B, N, outputs)
        original = batch.images.float() / 255
        patches = patchify(original, backbone.patch_size)  # (B, N, P)
        seen = gather_tokens(patches, corruption.source).masked_fill(corruption.masked[..., None], 0.5)
        pred = output.clamp(0, 1) if self.target_kind == "pixels" else self._colors(output)
        pasted = torch.where(corruption.mask[..., None], pred, patches)
        seen, pred, pasted = (unpatchify(p, backbone.grid_size, backbone.patch_size) for p in (seen, pred, pasted))
        return Panel(original, seen, pred, pasted, f"target: {self.target_kind} of each corrupted patch")

    def _colors(self, output: Tensor) -> Tensor:
        """Logits (B, N, M * K) -> the colour of the likeliest bins, as patches (B, N, P)."""
        classes = output.unflatten(2, (-1, self.num_bins)).argmax(dim=-1)  # (B, N, M)
        channels = self.backbone.in_chans
        divisors = [_LEVELS ** (channels - 1 - channel) for channel in range(channels)]
        levels = torch.stack([classes // divisor % _LEVELS for divisor in divisors], dim=-1)  # (B, N, M, C)
        cells = _CELLS if self.target_kind == "downsampled_color" else 1
        miniature = unpatchify(((levels + 0.5) / _LEVELS).flatten(2), self.backbone.grid_size, (cells, cells))
        return patchify(F.interpolate(miniature, size=self.backbone.img_size, mode="nearest"), self.backbone.patch_size)

    @property
    def predicts(self) -> str:
        """The target."""
        return f"{self.target_kind} of corrupted patches"

    def describe(self) -> dict[str, str]:
        """What is corrupted and what is predicted."""
        return {
            "corrupted": f"{self.num_hidden} of {self.backbone.num_patches} patches ({self.mask_ratio:g})",
            "target": self.target_kind,
        }

    def macs(self) -> int:
        """All patches are projected and encoded; the last block and the head compute the corrupted ones alone."""
        encoder = self.backbone.macs(self.backbone.num_patches, read=self.num_hidden)
        return encoder + self.num_hidden * self.head.weight.numel()
