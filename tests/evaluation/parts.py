"""A tiny run on scikit-learn's digits and its images."""

import torch

from tests.weights.parts import build, save_checkpoint, settings
from vitmae.config import build as build_node
from vitmae.evaluation.feature_store import FeatureStore
from vitmae.evaluation.probe_data import ProbeData
from vitmae.trained.model import Model
from vitmae.weights.saved import read_saved

DIGITS = {"img_size": [8, 8], "in_chans": 1, "patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2}
DATA = {
    "_target_": "vitmae.data.datamodule.ImageData",
    "source": {"_target_": "vitmae.data.sources.digits.Digits"},
    "img_size": [8, 8],
    "in_chans": 1,
    "batch_size": 64,
    "num_workers": 0,
    "val_fraction": 0.2,
    "train_fraction": 0.3,
    "seed": 0,
    "crop": "none",
    "hflip": True,
    "stats": {"mean": [0.3], "std": [0.4]},
    "crop_pct": 1.0,
    "drop_last": False,
}


def digits_run(folder, kind="mae", classes="0123456789", seed=0, **model):
    """A run directory with one checkpoint."""
    config = settings(kind, DIGITS, **model) | {"data": DATA, "seed": 3}
    made = build(kind, DIGITS, seed=seed, **model)
    save_checkpoint(folder / "checkpoints" / "last.ckpt", made, config, class_names=list(classes))
    return folder


def digits_data(**changed):
    data = build_node(DATA | changed)
    data.prepare()
    return data


def probe_data(folder, root, *, scored="test", limit=None, data=None, token_images=None, **model):
    data = data or digits_data()
    made = Model(read_saved(folder), torch.device("cpu"), **{"precision": "32-true"} | model)
    store = FeatureStore(made, data, root, limit=limit, token_images=token_images)
    return ProbeData(made, store, data, scored, seed=0)
