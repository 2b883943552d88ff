"""Supervised vision transformer (https://arxiv.org/abs/2010.11929).

    images -> patches -> encoder -> pool -> linear head, zero at first -> classes

It trains from scratch, or fine-tunes `backbone.weights`: the whole model, its last blocks, or the head alone.

Shapes: B batch, C channels, H W image, N patches, D width, K classes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import CutMix, MixUp

from vitmae.backbones.backbone import Backbone
from vitmae.batch import Batch
from vitmae.errors import UserError
from vitmae.limits import check_arguments
from vitmae.models.objective import Objective
from vitmae.models.protocols import Classifies
from vitmae.recipe import Recipe

Pool = Literal["cls", "avg", "map"]


class Supervised(Objective, Classifies):
    """Classify whole images.

    Args:
        backbone: the encoder.
        optimizer: the recipe.
        mean: see `Objective`.
        std: see `Objective`.
        num_classes: K.
        pool: ``cls`` reads the CLS token after the final norm; ``avg`` averages the patch tokens and norms the
            average, as the published MAE fine-tuning does; ``map`` is attention pooling with one learned query.
        label_smoothing: share of the target spread over all classes.
        mixup: alpha of mixup, 0 for none.
        cutmix: alpha of CutMix, 0 for none; with both, each batch gets one or the other, with equal probability.
        fixed_positions: 2-D sine-cosine positions instead of learned ones.
        init: first weights of the backbone: ``backbone``, its own (timm's); ``jax``, those of ViT's published code.
        freeze: how many of the first blocks are frozen, together with the embeddings (partial fine-tuning,
            https://arxiv.org/abs/2111.06377, figure 9); all is a linear probe; 0 freezes nothing.
        head_init_std: standard deviation of the head's initial weights, a truncated normal; 0, as in the ViT paper,
            gives every class the same probability.
        map_norm_eps: added to the variance in the norm of ``map``; 1e-6 as in timm, 1e-5 in runs of earlier versions.

    Raises:
        UserError: the data has no labels, the backbone no CLS token to pool, or fewer blocks than `freeze`.
    """

    title = "supervised ViT"
    paper = "https://arxiv.org/abs/2010.11929"
    needs_labels = True
    published_as = "vit_classifier"
    predicts = "classes"
    monitor = ("val/acc1", "max")

    @check_arguments("model")
    def __init__(
        self,
        backbone: Backbone,
        optimizer: Recipe,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: Annotated[int, Ge(1)] | None,
        pool: Pool = "cls",
        label_smoothing: Annotated[float, Ge(0), Le(1)] = 0.0,
        mixup: Annotated[float, Ge(0)] = 0.0,
        cutmix: Annotated[float, Ge(0)] = 0.0,
        fixed_positions: bool = False,
        init: Literal["backbone", "jax"] = "backbone",
        freeze: Annotated[int, Ge(0)] | Literal["all"] = 0,
        head_init_std: Annotated[float, Ge(0)] = 0.0,
        map_norm_eps: Annotated[float, Gt(0)] = 1e-6,
    ) -> None:
        super().__init__(backbone, optimizer, mean, std)
        if num_classes is None:
            raise UserError("model=vit needs labels, and this data has none: use model=mae or model=masked_patch")
        if pool == "cls" and not backbone.has_cls:
            raise UserError("model.pool=cls: this backbone has no CLS token, use model.pool=avg or map")
        self.num_classes, self.pool, self.label_smoothing = num_classes, pool, label_smoothing
        self.fixed_positions, self.frozen, self.head_init_std = fixed_positions, freeze, head_init_std
        self.init, self.map_norm_eps = init, map_norm_eps
        if fixed_positions:
            backbone.fix_positions()
        if init == "jax":
            backbone.init_jax()
        if pool == "avg":
            backbone.remove_norm()
            self.fc_norm = nn.LayerNorm(backbone.embed_dim, eps=1e-6)
        elif pool == "map":
            norm_layer: Any = partial(nn.LayerNorm, eps=map_norm_eps)
            self.attn_pool = AttentionPoolLatent(
                backbone.embed_dim, num_heads=backbone.num_heads, norm_layer=norm_layer
            )
        backbone.freeze(freeze)
        self.head = nn.Linear(backbone.embed_dim, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if head_init_std:
            nn.init.trunc_normal_(self.head.weight, std=head_init_std)
        mixes = ((MixUp, mixup), (CutMix, cutmix))
        with torch.device("cpu"):  # the distribution of a mix needs values, which the meta device does not have
            self.mixes = [mix(alpha=alpha, num_classes=num_classes) for mix, alpha in mixes if alpha]

    def took_effect(self) -> dict[str, Any]:
        """Settings that are stored under another name, see `vitmae.training.accounting`."""
        alphas = {type(mix).__name__.lower(): mix.alpha for mix in self.mixes}
        return {"mixup": 0.0, "cutmix": 0.0, "freeze": self.frozen} | alphas

    def without_effect(self) -> dict[str, str]:
        """Settings that have no effect with this pooling, and why."""
        return {} if self.pool == "map" else {"map_norm_eps": f"model.pool={self.pool} has no such norm: leave it out"}

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """The cross-entropy; on held-out images without mixing and smoothing, and with top-1 and top-5 accuracy."""
        images = self.normalize(batch.images)  # (B, C, H, W)
        if self.training:
            images, target = self.mix(images, batch.labels)
            logits = self(images).to(images.dtype)  # (B, K)
            return {"loss": F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)}
        logits = self(images).to(images.dtype)
        return {
            "loss": F.cross_entropy(logits, batch.labels),
            "acc1": topk_accuracy(logits, batch.labels, 1),
            "acc5": topk_accuracy(logits, batch.labels, 5),
        }

    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix pairs of images of the batch: labels (B,) -> soft targets (B, K); without a mix, both stay as they are.

        torchvision's mixes draw from torch's generator, which `training_step` seeds with the batch's key.
        """
        if not self.mixes:
            return images, labels
        mix = self.mixes[int(torch.randint(len(self.mixes), ()))]
        return mix(images, labels)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> logits (B, K)."""
        cls = (
            images.new_zeros(len(images), 1, dtype=torch.long) if self.pool == "cls" else None
        )  # the head reads no other token
        return self.head(self.pooled(self.backbone(images, cls)))

    def pooled(self, latent: Tensor) -> Tensor:
        """One vector per image: (B, prefix + N, D) -> (B, D)."""
        if self.pool == "cls":
            return latent[:, 0]
        patches = latent[:, self.backbone.num_prefix_tokens :]  # (B, N, D)
        return self.fc_norm(patches.mean(dim=1)) if self.pool == "avg" else self.attn_pool(patches)

    def describe(self) -> dict[str, str]:
        """What is frozen, how labels are mixed and smoothed, and what the head reads."""
        backbone = self.backbone
        trained = [backbone.layer_of(name) for name, p in backbone.named_parameters() if p.requires_grad]
        frozen = f"embeddings and the first {min(trained) - 1} of {backbone.depth} blocks" if trained else ""
        mixes = [f"{type(mix).__name__.lower()} {mix.alpha:g}" for mix in self.mixes]
        std = float(self.head.weight.detach().float().std())
        return {
            "frozen": "the whole backbone" if not trained else "nothing" if min(trained) == 0 else frozen,
            "mixing": " or ".join(mixes) or "none",
            "label smoothing": f"{self.label_smoothing:g}",
            "head": f"reads {self.pool}, weights of deviation {std:.2g}",
        }

    def macs(self) -> int:
        """All patches are projected and encoded; where the head reads CLS, the last block computes that alone."""
        patches = self.backbone.num_patches
        total = self.backbone.macs(patches, read=1 if self.pool == "cls" else None) + self.head.weight.numel()
        if self.pool == "map":
            pool = self.attn_pool
            one_query = sum(part.weight.numel() for part in (pool.q, pool.proj, pool.mlp.fc1, pool.mlp.fc2))
            total += patches * pool.kv.weight.numel() + one_query + 2 * patches * self.backbone.embed_dim
        return total


def topk_accuracy(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Share of images whose label is among the k likeliest classes: (B, K), (B,) -> scalar in [0, 1]."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices  # (B, k)
    return (best == labels[:, None]).any(dim=1).float().mean()
