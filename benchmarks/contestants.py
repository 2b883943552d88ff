"""This project and its peers as modules with one interface: batch -> loss.

Each peer is built from its own classes with the same sizes. Where a library leaves a part to its user (lightly's
training loop), this file follows its documentation. Peers get normalised images; this project gets bytes and normalises
them, as in a run.

Sizes are those of https://arxiv.org/abs/2111.06377 and https://arxiv.org/abs/2010.11929.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitmae.backbones.blocks import choose_kernels
from vitmae.backbones.timm_vit import TimmViT
from vitmae.batch import Batch
from vitmae.models.mae import MAE
from vitmae.models.masked_patch import MaskedPatch
from vitmae.models.objective import Objective
from vitmae.models.supervised import Supervised
from vitmae.randomness import fold_indices
from vitmae.recipe import Recipe, build_optimizer, param_groups

CLASSES = 1000
_STATISTICS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class Size:
    """Sizes that all contestants of a comparison share.

    Attributes:
        img_size: pixels.
        patch_size: pixels.
        embed_dim: width.
        depth: blocks.
        num_heads: per block.
        decoder: width, blocks and heads of a masked autoencoder's decoder.
        mask_ratio: of a masked autoencoder.
    """

    img_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    decoder: tuple[int, int, int] = (512, 8, 16)
    mask_ratio: float = 0.75

    @property
    def num_patches(self) -> int:
        """Of an image."""
        return (self.img_size // self.patch_size) ** 2


B16 = Size(224, 16, 768, 12, 12)
S16 = Size(224, 16, 384, 12, 6)
L16 = Size(224, 16, 1024, 24, 16)
H14 = Size(224, 14, 1280, 32, 16)
S_CIFAR = Size(32, 4, 384, 12, 6, (192, 4, 3))
CIFAR = Size(32, 4, 192, 12, 3, (192, 4, 3))
TINY = Size(32, 8, 64, 2, 2, (32, 1, 2))


def backbone(size: Size) -> TimmViT:
    """This project's backbone."""
    return TimmViT(
        "vit_base_patch16_224",
        size.img_size,
        patch_size=size.patch_size,
        embed_dim=size.embed_dim,
        depth=size.depth,
        num_heads=size.num_heads,
    )


def objective(kind: str, size: Size) -> Objective:
    """This project's objective: mae, masked_patch or supervised."""
    if kind == "mae":
        width, depth, heads = size.decoder
        return MAE(
            backbone(size),
            Recipe(),
            **_STATISTICS,
            mask_ratio=size.mask_ratio,
            norm_pix_loss=True,
            decoder_embed_dim=width,
            decoder_depth=depth,
            decoder_num_heads=heads,
        )
    if kind == "masked_patch":
        return MaskedPatch(backbone(size), Recipe(), **_STATISTICS)
    return Supervised(backbone(size), Recipe(), **_STATISTICS, num_classes=CLASSES)


class Ours(nn.Module):
    """An objective of this project, as its Trainer steps it."""

    def __init__(self, objective: Objective, *, bf16: bool) -> None:
        super().__init__()
        self.objective = objective
        choose_kernels(objective, in_cpu_bf16=bf16)

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch."""
        return self.objective.training_step(batch, 0)


class Peer(nn.Module):
    """A model that takes images and, if it is supervised, labels."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch."""
        return self.loss(self.model, images, labels)


def transformers_mae(size: Size) -> Peer:
    """ViTMAEForPreTraining of transformers."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    width, depth, heads = size.decoder
    config = ViTMAEConfig(
        hidden_size=size.embed_dim,
        num_hidden_layers=size.depth,
        num_attention_heads=size.num_heads,
        intermediate_size=4 * size.embed_dim,
        image_size=size.img_size,
        patch_size=size.patch_size,
        decoder_hidden_size=width,
        decoder_num_hidden_layers=depth,
        decoder_num_attention_heads=heads,
        decoder_intermediate_size=4 * width,
        mask_ratio=size.mask_ratio,
        norm_pix_loss=True,
    )
    return Peer(ViTMAEForPreTraining(config), lambda model, images, labels: model(images).loss)


class LightlyMAE(nn.Module):
    """The masked timm ViT and the decoder of lightly, joined as its documentation joins them."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
        from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM

        width, depth, heads = size.decoder
        self.patch_size, self.mask_ratio = size.patch_size, size.mask_ratio
        self.encoder = MaskedVisionTransformerTIMM(vit=_timm(size))
        self.embed = nn.Linear(size.embed_dim, width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(size.num_patches, width, depth, heads)
        self.pred = nn.Linear(width, size.patch_size**2 * 3)

    def forward(self, images: Tensor) -> Tensor:
        """The loss of a batch."""
        from lightly.models import utils

        length = self.encoder.sequence_length
        shown, hidden = utils.random_token_mask((len(images), length), self.mask_ratio, device=images.device)
        latent = self.embed(self.encoder.encode(images, idx_keep=shown))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), length))
        tokens = utils.set_at_index(tokens, shown, latent.type_as(tokens))
        pred = self.pred(utils.get_at_index(self.decoder(tokens), hidden))
        target = utils.get_at_index(utils.patchify(images, self.patch_size), hidden - 1)
        return F.mse_loss(pred, target)


def lightly_mae(size: Size) -> Peer:
    """The MAE of lightly."""
    return Peer(LightlyMAE(size), lambda model, images, labels: model(images))


def vit_pytorch_mae(size: Size) -> Peer:
    """The MAE of vit-pytorch: no CLS token, no biases in attention. (With pool="cls" 1.26.11 does not run.)"""
    from vit_pytorch import MAE as TheirMAE

    width, depth, heads = size.decoder
    encoder = _vit_pytorch(size, "mean")
    model = TheirMAE(
        encoder=encoder,
        decoder_dim=width,
        masking_ratio=size.mask_ratio,
        decoder_depth=depth,
        decoder_heads=heads,
        decoder_dim_head=width // heads,
    )
    return Peer(model, lambda model, images, labels: model(images))


def timm_vit(size: Size) -> Peer:
    """VisionTransformer of timm."""
    return Peer(_timm(size, CLASSES), _classify)


def torchvision_vit(size: Size) -> Peer:
    """VisionTransformer of torchvision."""
    from torchvision.models import VisionTransformer

    model = VisionTransformer(
        size.img_size,
        size.patch_size,
        size.depth,
        size.num_heads,
        size.embed_dim,
        4 * size.embed_dim,
        num_classes=CLASSES,
    )
    return Peer(model, _classify)


def transformers_vit(size: Size) -> Peer:
    """ViTForImageClassification of transformers."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=size.embed_dim,
        num_hidden_layers=size.depth,
        num_attention_heads=size.num_heads,
        intermediate_size=4 * size.embed_dim,
        image_size=size.img_size,
        patch_size=size.patch_size,
        num_labels=CLASSES,
    )
    return Peer(ViTForImageClassification(config), lambda model, images, labels: model(images, labels=labels).loss)


def vit_pytorch_vit(size: Size) -> Peer:
    """The ViT of vit-pytorch."""
    return Peer(_vit_pytorch(size), _classify)


def _classify(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)


def _timm(size: Size, num_classes: int = 0) -> nn.Module:
    return timm.create_model(
        "vit_base_patch16_224",
        img_size=size.img_size,
        patch_size=size.patch_size,
        embed_dim=size.embed_dim,
        depth=size.depth,
        num_heads=size.num_heads,
        num_classes=num_classes,
    )


def _vit_pytorch(size: Size, pool: str = "cls") -> nn.Module:
    from vit_pytorch import ViT

    return ViT(
        image_size=size.img_size,
        patch_size=size.patch_size,
        num_classes=CLASSES,
        dim=size.embed_dim,
        depth=size.depth,
        heads=size.num_heads,
        mlp_dim=4 * size.embed_dim,
        dim_head=size.embed_dim // size.num_heads,
        pool=pool,
    )


PEERS: dict[str, dict[str, Callable[[Size], Peer]]] = {
    "mae": {"transformers": transformers_mae, "lightly": lightly_mae, "vit-pytorch": vit_pytorch_mae},
    "supervised": {
        "timm": timm_vit,
        "torchvision": torchvision_vit,
        "transformers": transformers_vit,
        "vit-pytorch": vit_pytorch_vit,
    },
    "masked_patch": {},
}


class Step:
    """Forward, backward and AdamW of one contestant.

    Args:
        module: a contestant.
        inputs: what it is given.
        bf16: autocast to it; parameters stay in float32.
        fused: torch's fused AdamW; False: as `torch.optim.AdamW(parameters)` is.
    """

    def __init__(self, module: Ours | Peer, inputs: tuple[Any, ...], *, bf16: bool, fused: bool = True) -> None:
        self.module, self.inputs, self.bf16 = module.train(), inputs, bf16
        self.device = next(module.parameters()).device.type
        self.compiled: Callable[..., Tensor] | None = None
        if isinstance(module, Ours):
            groups = param_groups(
                module.objective.named_parameters(),
                Recipe(),
                1e-4,
                module.objective.layer_of,
                module.objective.backbone.depth + 1,
            )
            self.optimizer = build_optimizer(groups, Recipe())
        else:
            trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
            self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=fused or None)

    def compile(self) -> None:
        """Compile: this project's blocks, or a whole peer."""
        if isinstance(self.module, Ours):
            self.module.objective.compile_blocks()
            self.compiled = self.module
        else:
            self.compiled = torch.compile(self.module, dynamic=False)

    def eager(self) -> None:
        """One eager step, also after `compile`."""
        with torch.compiler.set_stance("force_eager"):
            self._step(self.module)

    def __call__(self) -> None:
        """One step, compiled if `compile` was called."""
        self._step(self.module if self.compiled is None else self.compiled)

    def _step(self, forward: Callable[..., Tensor]) -> None:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            loss = forward(*self.inputs)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def contestant(
    kind: str, name: str, size: Size, batch: int, *, bf16: bool, fused: bool = True, device: str = "cpu"
) -> Step:
    """Build one: this project ("vitmae") or a peer, with random weights and a random batch."""
    torch.manual_seed(0)
    labels = torch.arange(batch, device=device) % CLASSES
    images = torch.randint(256, (batch, 3, size.img_size, size.img_size), dtype=torch.uint8, device=device)
    if name == "vitmae":
        ours = Ours(objective(kind, size), bf16=bf16 and device == "cpu").to(device)
        keys = fold_indices(0, torch.arange(batch, device=device))
        return Step(ours, (Batch(images, labels, keys, 0),), bf16=bf16)
    peer = PEERS[kind][name](size).to(device)
    normalised = (images.float() / 255 - 0.45) / 0.226
    return Step(peer, (normalised, labels), bf16=bf16, fused=fused)
