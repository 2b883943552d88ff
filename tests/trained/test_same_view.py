"""A user and an evaluation see the same: images, features, numbers."""

import pytest
import torch

from tests.trained.parts import image_folder
from tests.weights.parts import build, save_checkpoint, settings
from vitmae.config import build as build_node
from vitmae.data.sources.shapes import Shapes
from vitmae.evaluation.data_settings import of_run
from vitmae.evaluation.feature_store import FeatureStore
from vitmae.trained.model import Model
from vitmae.weights.saved import read_saved
from vitmae.weights.write import write_weights

CPU = torch.device("cpu")
BACKBONE = {"img_size": [96, 96], "patch_size": 48, "embed_dim": 16, "depth": 1}


def run_on_photographs(place, **data):
    """A checkpoint at 96 pixels, trained on a folder of photographs; some of them have that size already."""
    image_folder(place / "photos" / "large", count=4, size=(130, 150))
    image_folder(place / "photos" / "exact", count=4, size=(96, 96))
    node = {
        "_target_": "vitmae.data.datamodule.ImageData",
        "source": {"_target_": "vitmae.data.sources.folder.Folder"},
        "path": str(place / "photos"),
        "img_size": 96,
        "in_chans": 3,
        "batch_size": 2,
        "num_workers": 0,
        "val_fraction": 0.5,
        "stats": {"mean": [0.5] * 3, "std": [0.2] * 3},
    }
    config = settings("mae", BACKBONE) | {"data": node | data, "seed": 0}
    save_checkpoint(place / "checkpoints" / "last.ckpt", build("mae", BACKBONE), config)
    return read_saved(place)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("crop_pct", [0.5, None])
def test_a_file_has_the_features_that_evaluation_gives_it(tmp_path, crop_pct, precision):
    saved = run_on_photographs(tmp_path, crop_pct=crop_pct)
    data = build_node(of_run(saved))
    data.prepare()
    model = Model(saved, CPU, precision)
    features = FeatureStore(model, data, tmp_path / "cache", limit=None, token_images=None)("train", patches=True)
    paths = [data.parts.train.images.name(index) for index in data.parts.train.indices.tolist()]
    assert {path.split("/")[-3] for path in paths} == {"large", "exact"}
    for pooling, vectors in (*features.pooled.items(), ("patches", features.patches)):
        assert torch.equal(model.encode(paths, pooling, batch_size=data.batch_size), vectors)


def test_a_centre_crop_changes_what_is_seen(tmp_path):
    """Without this the law above would hold for models that never crop."""
    saved = run_on_photographs(tmp_path)
    half, whole = (Model(saved.at_size((96, 96)), CPU) for _ in range(2))
    half.preprocess, whole.preprocess = (whole.preprocess._replace(crop_pct=share) for share in (0.5, 1.0))
    image = str(next((tmp_path / "photos" / "exact").glob("*/*.png")))
    assert not torch.equal(half.prepare(image), whole.prepare(image))


def test_drawn_images_are_seen_whole_by_a_model_trained_on_them_and_by_its_bundle(tmp_path):
    """They have the model's size: validation crops nothing off, where photographs lose an eighth."""
    data = build_node(
        {"_target_": "vitmae.data.datamodule.ImageData", "source": Shapes(16, 16, 16)},
        **{"img_size": 96, "in_chans": 3, "batch_size": 4, "num_workers": 0},
    )
    data.prepare()
    config = settings("mae", BACKBONE)
    made = build("mae", BACKBONE)
    save_checkpoint(tmp_path / "checkpoints" / "last.ckpt", made, config, crop_pct=data.val_crop_pct)
    write_weights(read_saved(tmp_path), "bundle", "full", tmp_path / "bundle")
    images = next(iter(data.val_dataloader())).images
    for place in (tmp_path, tmp_path / "bundle"):
        assert torch.equal(Model(read_saved(place), CPU).prepare(images), images)


def test_float32_is_the_plain_model_without_autocast(tmp_path):
    saved = run_on_photographs(tmp_path)
    model, plain = Model(saved, CPU, "32-true"), build("mae", BACKBONE)
    images = torch.randint(256, (3, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mask = model.mask(None, torch.arange(3))
    with torch.no_grad():
        latent = plain.backbone(plain.normalize(images))
        predicted = plain.decoder(plain.encode(plain.normalize(images), mask), mask, mask.ids_hide)
        error = (predicted - plain.target(plain.normalize(images), mask.ids_hide)).square().mean(2)
    assert torch.equal(model.encode_batch(images), latent[:, 1:].mean(1))
    assert torch.equal(model.encode_batch(images, "cls"), latent[:, 0])
    result = model.reconstruct_batch(images, mask)
    assert torch.equal(result.error.flatten(1).gather(1, mask.ids_hide), error)


def test_bf16_is_close_to_float32_and_not_the_same(tmp_path):
    saved = run_on_photographs(tmp_path)
    image = str(next((tmp_path / "photos" / "large").glob("*/*.png")))
    exact, fast = (Model(saved, CPU, precision).encode(image) for precision in ("32-true", "bf16-mixed"))
    assert fast.dtype == torch.float32
    assert not torch.equal(exact, fast)
    assert torch.allclose(exact, fast, atol=0.1)
