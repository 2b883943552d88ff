"""Calls from Python with what no function can use."""

import numpy as np
import torch

import vitmae
from tests.hostile.case import Case
from vitmae.backbones.timm_vit import TimmViT
from vitmae.data.datamodule import ImageData
from vitmae.data.sources.digits import Digits
from vitmae.data.sources.folder import Folder
from vitmae.evaluation.probes import KNN, Linear
from vitmae.models.mae import MAE
from vitmae.models.supervised import Supervised
from vitmae.recipe import Recipe

DIGITS = {"img_size": 8, "in_chans": 1, "batch_size": 4}
STATS = {"mean": [0.5], "std": [0.5]}


def backbone():
    return TimmViT("vit_tiny_patch16_224", 8, 1, patch_size=2, embed_dim=16, depth=1, num_heads=2)


def of_model(use, kind="run"):
    """A call of a trained model's method."""
    return lambda folder, run: use(vitmae.load(run if kind == "run" else folder / "vit", device="cpu"))


CALLS = {
    "load(None)": (lambda folder, run: vitmae.load(None), "path=null: must be a text"),
    "load('')": (lambda folder, run: vitmae.load(""), "path= is empty"),
    "load(bytes)": (lambda folder, run: vitmae.load(b"run"), "path: it is of type bytes"),
    "load(a list)": (lambda folder, run: vitmae.load([str(run)]), "must be a text"),
    "load(3)": (lambda folder, run: vitmae.load(3), "path=3: must be a text"),
    "load(nowhere)": (lambda folder, run: vitmae.load(folder / "nope"), "there is no such file"),
    "load(a folder of images)": (lambda folder, run: vitmae.load(folder / "photos"), "there is no checkpoint"),
    "load(precision='x')": (lambda folder, run: vitmae.load(run, precision="x"), "precision=x: must be auto"),
    "load(precision=None)": (lambda folder, run: vitmae.load(run, precision=None), "precision=null: must be auto"),
    "load(device='tpu9')": (lambda folder, run: vitmae.load(run, device="tpu9"), "device=tpu9"),
    "load(device='')": (lambda folder, run: vitmae.load(run, device=""), "device=: must be a text that is not empty"),
    "load(device='meta')": (lambda folder, run: vitmae.load(run, device="meta"), "device=meta holds no numbers"),
    "load(device=object)": (lambda folder, run: vitmae.load(run, device=object()), "device: it is of type object"),
    "load(trust='x')": (lambda folder, run: vitmae.load(run, "cpu", trust="x"), "trust=x: must be a list"),
    "encode(None)": (of_model(lambda model: model.encode(None)), "images are of type NoneType"),
    "encode(bytes)": (of_model(lambda model: model.encode(b"x")), "images are of type bytes"),
    "encode([])": (of_model(lambda model: model.encode([])), "there are no images"),
    "encode([None])": (of_model(lambda model: model.encode([None])), "image 0 is of type NoneType"),
    "encode([3])": (of_model(lambda model: model.encode([3])), "image 0 is of type int"),
    "encode(a generator)": (of_model(lambda model: model.encode(x for x in ())), "images are of type generator"),
    "encode(nowhere)": (of_model(lambda model: model.encode("nope.png")), "nope.png cannot be read"),
    "encode(pooling='max')": (of_model(lambda model: model.encode("x", "max")), "pooling=max: must be cls, avg"),
    "encode(batch_size=0)": (of_model(lambda model: model.encode("x", batch_size=0)), "batch_size=0: must be ≥ 1"),
    "encode(batch_size=-1)": (of_model(lambda model: model.encode("x", batch_size=-1)), "batch_size=-1: must be ≥ 1"),
    "predict(top=0)": (of_model(lambda model: model.predict("x", top=0), "vit"), "top=0: must be ≥ 1"),
    "predict(top=1.5)": (of_model(lambda model: model.predict("x", top=1.5), "vit"), "must be a whole number"),
    "predict(top=None)": (of_model(lambda model: model.predict("x", top=None), "vit"), "top=null: must be a whole"),
    "predict without a head": (of_model(lambda model: model.predict("x")), "holds no classifier"),
    "predict([])": (of_model(lambda model: model.predict([]), "vit"), "there are no images"),
    "reconstruct(mask=2)": (of_model(lambda m: m.reconstruct(np.zeros((8, 8), "uint8"), 2)), "mask=2: must be a ratio"),
    "reconstruct(mask=nan)": (
        of_model(lambda m: m.reconstruct(np.zeros((8, 8), "uint8"), float("nan"))),
        "mask=NaN: must be finite",
    ),
    "reconstruct(mask=object)": (
        of_model(lambda m: m.reconstruct(np.zeros((8, 8), "uint8"), object())),
        "is of type object",
    ),
    "reconstruct(mask of another size)": (
        of_model(lambda m: m.reconstruct(np.zeros((8, 8), "uint8"), torch.ones(3, 3))),
        "the mask has shape (3, 3)",
    ),
    "reconstruct(seed=-1)": (of_model(lambda m: m.reconstruct("x", seed=-1)), "seed=-1: must be ≥ 0"),
    "reconstruct(None)": (of_model(lambda m: m.reconstruct(None)), "images are of type NoneType"),
    "Recipe(base_lr=None)": (
        lambda folder, run: Recipe(base_lr=None),
        "model.optimizer.base_lr=null: must be a number",
    ),
    "Recipe(betas=0.9)": (lambda folder, run: Recipe(betas=0.9), "model.optimizer.betas=0.9: must be a list of 2"),
    "Recipe(name=None)": (lambda folder, run: Recipe(name=None), "model.optimizer.name=null: must be a text"),
    "TimmViT(None)": (lambda folder, run: TimmViT(None, 8), "backbone.name=null: must be a text"),
    "TimmViT(img_size='x')": (lambda folder, run: TimmViT("vit_tiny_patch16_224", "x"), "backbone.img_size=x: must be"),
    "TimmViT(depth=0)": (lambda folder, run: TimmViT("vit_tiny_patch16_224", 32, depth=0), "backbone.depth=0: must be"),
    "MAE(None)": (lambda folder, run: MAE(None, Recipe(), **STATS), "model.backbone=null: must be a Backbone"),
    "MAE(a module)": (lambda folder, run: MAE(torch.nn.Identity(), Recipe(), **STATS), "must be a Backbone"),
    "MAE(optimizer=dict)": (lambda folder, run: MAE(backbone(), {}, **STATS), "model.optimizer={}: must be a Recipe"),
    "MAE(mean=None)": (lambda folder, run: MAE(backbone(), Recipe(), None, [0.5]), "model.mean=null: must be a list"),
    "MAE(mask_ratio=None)": (
        lambda folder, run: MAE(backbone(), Recipe(), **STATS, mask_ratio=None),
        "model.mask_ratio=null: must be a number",
    ),
    "Supervised(num_classes=-1)": (
        lambda folder, run: Supervised(backbone(), Recipe(), **STATS, num_classes=-1),
        "model.num_classes=-1: must be ≥ 1",
    ),
    "ImageData(None)": (lambda folder, run: ImageData(None, **DIGITS), "data.source=null: must be a Source"),
    "ImageData('digits')": (lambda folder, run: ImageData("digits", **DIGITS), "data.source=digits: must be a Source"),
    "ImageData(batch_size=None)": (
        lambda folder, run: ImageData(Digits(), **DIGITS | {"batch_size": None}),
        "data.batch_size=null: must be a whole number",
    ),
    "ImageData(path=bytes)": (
        lambda folder, run: ImageData(Digits(), **DIGITS, path=b"x"),
        "data.path: it is of type bytes",
    ),
    "Folder(masks='')": (lambda folder, run: Folder(masks="nope", num_mask_classes=3), "is not a folder"),
    "KNN(ks=None)": (lambda folder, run: KNN(ks=None), "knn.ks=null: must be a list"),
    "KNN(ks=[])": (lambda folder, run: KNN(ks=[]), "knn.ks=[]: must be of length ≥ 1"),
    "Linear(epochs=5)": (lambda folder, run: Linear(epochs=5), "must be < linear.epochs=5"),
}
CASES = [
    *(Case(f"Python: {name}", call, says=(says,)) for name, (call, says) in CALLS.items()),
    Case(
        "Python: predict(top=10**9) gives all classes",
        of_model(lambda model: model.predict(np.zeros((8, 8), "uint8"), top=10**9), "vit"),
        ends=0,
    ),
]
