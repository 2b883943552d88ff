"""In -> out -> in gives the same tensors: for every pair of formats that hold the same parts of a model."""

from itertools import product

import pytest
import torch

from tests.weights.parts import build, save_checkpoint, settings
from vitmae.weights.load import load_weights
from vitmae.weights.read import read_weights
from vitmae.weights.saved import read_saved
from vitmae.weights.write import write_weights

SQUARE = {"img_size": [16, 16]}
EVERY = ("checkpoint", "bundle", "timm", "hf", "fair")
HOLD = {  # objective, its settings, the part -> the formats that have a place for it
    ("mae", (), "full"): ("checkpoint", "bundle", "hf", "fair"),
    ("mae", (("fixed_positions", False),), "full"): ("checkpoint", "bundle", "hf", "fair"),
    ("mae", (), "encoder"): EVERY,
    ("masked_patch", (), "full"): ("checkpoint", "bundle"),
    ("masked_patch", (), "encoder"): EVERY,
    ("vit", (("pool", "cls"),), "full"): EVERY,
    ("vit", (("pool", "avg"),), "full"): ("checkpoint", "bundle", "timm", "fair"),
    ("vit", (("pool", "map"),), "full"): ("checkpoint", "bundle", "timm"),
    ("vit", (), "encoder"): EVERY,
}
PAIRS = [
    pytest.param(kind, model, what, *pair, id="-".join([kind, *(f"{k}={v}" for k, v in model), what, *pair]))
    for (kind, model, what), formats in HOLD.items()
    for pair in product(formats, formats)
]


def written(made, kind, model, layout, what, folder):
    """Where an objective lies that was written in a format, as a user would name it."""
    path = save_checkpoint(
        folder / "run.ckpt", made, settings(kind, SQUARE, **dict(model)), class_names=list("abcdefghij")
    )
    if layout == "checkpoint":
        return str(path)
    write_weights(read_saved(path), layout, what, folder / layout)
    return str(next((folder / layout).glob("*.pth")) if layout == "fair" else folder / layout)


def parts_of(state, what):
    """The tensors of a part; what was measured of the data is no part of a model."""
    return {
        name: tensor
        for name, tensor in state.items()
        if name.startswith("backbone.") or (what == "full" and ("." in name or name == "mask_token"))
    }


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """The original of each model, and what a fresh model is after it has come back from the first format."""
    done = {}

    def come_back(kind, model, what, layout):
        key = (kind, model, what, layout)
        if key not in done:
            made = build(kind, SQUARE, **dict(model))
            path = written(made, kind, model, layout, what, tmp_path_factory.mktemp("first"))
            again = build(kind, SQUARE, seed=7, **dict(model))
            fresh = parts_of({name: tensor.clone() for name, tensor in again.state_dict().items()}, what)
            load_weights(again if what == "full" else again.backbone, path)
            assert not any(
                torch.equal(fresh[name], tensor) for name, tensor in made.named_parameters() if name in fresh
            )
            done[key] = made, again
        return done[key]

    return come_back


@pytest.mark.parametrize(("kind", "model", "what", "first", "second"), PAIRS)
def test_a_model_comes_back_the_same_through_any_two_formats(once, tmp_path, kind, model, what, first, second):
    made, again = once(kind, model, what, first)
    wanted = parts_of(made.state_dict(), what)
    came = read_weights(written(again, kind, model, second, what, tmp_path)).state
    assert wanted.keys() == parts_of(came, what).keys()
    assert all(torch.equal(came[name], tensor) for name, tensor in wanted.items())
