"""This project against transformers and timm on the same random weights and images: `make parity`.

    their model, random weights -> saved by their library -> `load_weights` -> both run, stage by stage

Each line is the largest absolute difference of any value: of the tokens that enter the first block, of each block, of
the latent after the final norm, and, for a masked autoencoder with the same mask noise, of the decoder's blocks, the
prediction and the loss. In float64 all must be < 1e-10, or the command fails. `benchmarks.training_parity` adds five
steps of training. Nothing is downloaded.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import transformers
from torch import Tensor, nn
from transformers import ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from benchmarks.training_parity import five_steps, section
from vitmae.backbones.timm_vit import TimmViT
from vitmae.models.mae import MAE
from vitmae.recipe import Recipe
from vitmae.tokens.masking import mask_from_scores
from vitmae.weights.load import load_weights

LIMIT = 1e-10  # in float64
PRECISIONS = (torch.float32, torch.float64)
_EPS = 1e-6
_SHAPES = {"Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12)}  # width, blocks, heads
_INTRODUCTION = """# Parity

What `make parity` measures: this project against `transformers` and `timm`, on the same random weights, images and
mask noise, two images each. The other library saves the weights, and `load_weights` loads them. Each number is the
largest absolute difference of any value of that stage, in float32 / in float64; "blocks" is the largest of all blocks,
and the last table shows each block. In float64 every difference must be < {limit:.0e}, or the command fails.

{versions}.
`transformers` builds its ViTMAE for square images only, so rectangles are compared with its ViT.
"""
_PAGE = Path(__file__).resolve().parent.parent / "docs" / "parity.md"


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        library: transformers or timm.
        model: what is compared, in words.
        name: the timm name of this project's backbone.
        size: image side, or (height, width).
        channels: of the image.
        patch_size: side of a patch; None as the name says.
        shape: Ti, S or B for transformers, whose models have no names.
        mask_ratio: of a masked autoencoder.
        norm_pix_loss: of a masked autoencoder.
    """

    library: str
    model: str
    name: str
    size: tuple[int, int]
    channels: int = 3
    patch_size: int | None = 16
    shape: str = "Ti"
    mask_ratio: float = 0.75
    norm_pix_loss: bool = False


CASES = (
    Case("transformers", "ViTMAE Ti/16", "vit_tiny_patch16_224", (224, 224)),
    Case("transformers", "ViTMAE Ti/8", "vit_tiny_patch16_224", (64, 64), 1, 8, norm_pix_loss=True),
    Case("transformers", "ViTMAE S/16", "vit_small_patch16_224", (160, 160), 4, shape="S", mask_ratio=0.5),
    Case("transformers", "ViTMAE B/16", "vit_base_patch16_224", (96, 96), shape="B", norm_pix_loss=True),
    Case("transformers", "ViT Ti/16", "vit_tiny_patch16_224", (224, 224)),
    Case("transformers", "ViT S/16", "vit_small_patch16_224", (96, 160), 1, shape="S"),
    Case("transformers", "ViT B/16", "vit_base_patch16_224", (64, 128), 4, shape="B"),
    Case("timm", "ViT Ti/16", "vit_tiny_patch16_224", (224, 224)),
    Case("timm", "ViT S/16", "vit_small_patch16_224", (160, 320), 1),
    Case("timm", "ViT B/16", "vit_base_patch16_224", (96, 96), 4),
    Case("timm", "ViT S/14, 4 registers", "vit_small_patch14_reg4_dinov2", (112, 140), patch_size=14),
    Case("timm", "ViT B/16, 4 registers, no CLS", "vit_base_patch16_reg4_gap_256", (64, 96), 1),
    Case("timm", "R26+S/32", "vit_small_r26_s32_224", (128, 192), patch_size=None),
    Case("timm", "R50+B/16", "vit_base_r50_s16_224", (32, 64), 4, patch_size=None),
)

Stages = dict[str, Tensor]
Side = Callable[[Tensor, Tensor], Stages]
"""Images (2, C, H, W) and mask noise (2, N) -> the values of each stage."""


class Pair(NamedTuple):
    """Two models with the same weights, and how each is run."""

    models: tuple[nn.Module, nn.Module]
    here: Side
    there: Side


def compare(case: Case) -> dict[torch.dtype, dict[str, float]]:
    """The largest absolute difference at each stage, in each precision."""
    with tempfile.TemporaryDirectory() as folder:
        pair = (timm_pair if case.library == "timm" else transformers_pair)(case, folder)
    drawn = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, case.channels, *case.size, generator=drawn), torch.rand(2, 10_000, generator=drawn)
    differences = {}
    for precision in PRECISIONS:
        for model in pair.models:
            model.to(precision).eval()
        with torch.no_grad():
            here, there = (side(images.to(precision), noise.to(precision)) for side in (pair.here, pair.there))
        assert list(here) == list(there)
        differences[precision] = {stage: float((here[stage] - there[stage]).abs().max()) for stage in here}
    return differences


def timm_pair(case: Case, folder: str) -> Pair:
    """This project's backbone, and timm's model."""
    shape = {"patch_size": case.patch_size} if case.patch_size else {}
    headless = {"num_classes": 0, "global_pool": ""}
    theirs = timm.create_model(case.name, img_size=case.size, in_chans=case.channels, **headless, **shape)
    _shake(theirs)
    backbone = TimmViT(case.name, case.size, case.channels, **shape)
    torch.save(theirs.state_dict(), f"{folder}/timm.pth")
    load_weights(backbone, f"{folder}/timm.pth", min_match=1.0)

    def here(images: Tensor, _: Tensor) -> Stages:
        return _watched(backbone.vit.blocks, lambda: {"latent": backbone(images)})

    def there(images: Tensor, _: Tensor) -> Stages:
        return _watched(theirs.blocks, lambda: {"latent": theirs.forward_features(images)})

    return Pair((backbone, theirs), here, there)


def transformers_pair(case: Case, folder: str) -> Pair:
    """This project's backbone or masked autoencoder, and transformers' model."""
    width, depth, heads = _SHAPES[case.shape]
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "image_size": list(case.size),
        "patch_size": case.patch_size,
        "num_channels": case.channels,
        "layer_norm_eps": _EPS,
    }
    backbone = TimmViT(case.name, case.size, case.channels, case.patch_size)
    if not case.model.startswith("ViTMAE"):
        vit = ViTModel(ViTConfig(**sizes), add_pooling_layer=False)
        _shake(vit)
        vit.save_pretrained(folder)
        load_weights(backbone, folder, min_match=1.0)
        return Pair(
            (backbone, vit),
            lambda images, _: _watched(backbone.vit.blocks, lambda: {"latent": backbone(images)}),
            lambda images, _: _watched(vit.layers, lambda: {"latent": vit(images).last_hidden_state}),
        )
    decoder = {
        "decoder_hidden_size": 192,
        "decoder_num_hidden_layers": 4,
        "decoder_num_attention_heads": 6,
        "decoder_intermediate_size": 768,
    }
    loss = {"mask_ratio": case.mask_ratio, "norm_pix_loss": case.norm_pix_loss}
    twin = ViTMAEForPreTraining(ViTMAEConfig(**sizes | {"image_size": case.size[0]}, **decoder, **loss))
    _shake(twin)
    twin.save_pretrained(folder)
    shape = {"decoder_embed_dim": 192, "decoder_depth": 4, "decoder_num_heads": 6}
    mae = MAE(backbone, Recipe(), [0.5] * case.channels, [0.5] * case.channels, **loss, **shape)
    load_weights(mae, folder, min_match=1.0)

    def here(images: Tensor, noise: Tensor) -> Stages:
        noise = noise[:, : backbone.num_patches]
        mask = mask_from_scores(noise, int(backbone.num_patches * (1 - case.mask_ratio)))

        def run() -> Stages:
            loss = mae.loss(images, mask)
            return {"latent": mae.encode(images, mask), "prediction": mae.reconstruct(images, mask), "loss": loss}

        return _watched(backbone.vit.blocks, run, mae.decoder.blocks)

    def there(images: Tensor, noise: Tensor) -> Stages:
        noise = noise[:, : backbone.num_patches]

        def run() -> Stages:
            out = twin(images, noise=noise)
            latent = twin.vit(images, noise=noise).last_hidden_state
            return {"latent": latent, "prediction": out.logits, "loss": out.loss}

        stages = _watched(twin.vit.layers, run, twin.decoder.decoder_layers)
        last = f"decoder block {len(twin.decoder.decoder_layers)}"
        return stages | {last: stages[last][:, 1:]}  # this project computes only the patches there

    return Pair((mae, twin), here, there)


def _watched(blocks: Any, run: Callable[[], Stages], decoder_blocks: Any = ()) -> Stages:
    """The input of the first block, the output of each block, and then what a run returns."""
    stages: Stages = {}
    hooks = [blocks[0].register_forward_pre_hook(lambda _, inputs: stages.update({"tokens": inputs[0]}))]
    named = [(f"block {i}", block) for i, block in enumerate(blocks, 1)]
    named += [(f"decoder block {i}", block) for i, block in enumerate(decoder_blocks, 1)]
    for name, block in named:
        hooks.append(block.register_forward_hook(_keep(stages, name)))
    try:
        results = run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: stages[name] for name in ["tokens", *(name for name, _ in named)]} | results


def _keep(stages: Stages, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        stages[name] = output[0] if isinstance(output, tuple) else output

    return hook


def _shake(model: nn.Module) -> None:
    """Replace the zeros and ones of a fresh model by random weights, so that every part has an effect."""
    drawn = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or "pos" in name:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=drawn)


def page(results: dict[Case, dict[torch.dtype, dict[str, float]]]) -> str:
    """The text of docs/parity.md."""
    versions = ", ".join(f"{library.__name__} {library.__version__}" for library in (torch, timm, transformers))
    lines = [
        _INTRODUCTION.format(limit=LIMIT, versions=versions),
        "| against | model | image | channels | tokens | blocks | latent | decoder blocks | prediction | loss |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, by_precision in results.items():
        stages = ("tokens", "block", "latent", "decoder block", "prediction", "loss")
        cells = [_pair([_worst(by_precision[precision], stage) for precision in PRECISIONS]) for stage in stages]
        lines.append(
            f"| {case.library} | {case.model} | {case.size[0]}x{case.size[1]} | {case.channels} | "
            + " | ".join(cells)
            + " |"
        )
    lines += ["", "## Block by block", "", "In float64.", ""]
    depth = max(sum(stage.startswith("block") for stage in by[PRECISIONS[1]]) for by in results.values())
    lines += ["| against | model | " + " | ".join(map(str, range(1, depth + 1))) + " |", "|---" * (depth + 2) + "|"]
    for case, by_precision in results.items():
        blocks = [by_precision[PRECISIONS[1]].get(f"block {i}") for i in range(1, depth + 1)]
        lines.append(f"| {case.library} | {case.model} | " + " | ".join(map(_number, blocks)) + " |")
    return "\n".join(lines) + "\n"


def _worst(differences: dict[str, float], stage: str) -> float | None:
    """The difference of a stage, or the largest of numbered stages."""
    return max((value for name, value in differences.items() if name.rstrip(" 0123456789") == stage), default=None)


def _pair(values: list[float | None]) -> str:
    return " / ".join(_number(value) for value in values) if values[0] is not None else ""


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.0e}"


def main() -> int:
    """Compare all cases, write the page, and report whether float64 is within its limit."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results: dict[Case, dict[torch.dtype, dict[str, float]]] = {}
    for case in CASES:
        results[case] = compare(case)
        single, double = (max(differences.values()) for differences in results[case].values())
        print(f"{case.library:13} {case.model:30} float32 {single:.1e}  float64 {double:.1e}", flush=True)
    trained = {norm_pix_loss: five_steps(norm_pix_loss) for norm_pix_loss in (False, True)}
    for norm_pix_loss, steps in trained.items():
        print(f"training, norm_pix_loss={norm_pix_loss}: float64 {steps[-1].weights:.1e} after {len(steps)} steps")
    _PAGE.write_text(page(results) + "\n" + section(trained, LIMIT), encoding="utf-8")
    print(f"written to {_PAGE}")
    worst = [max(by[torch.float64].values()) for by in results.values()]
    worst += [step.weights for steps in trained.values() for step in steps]
    return int(max(worst) >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
