import csv

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trained.parts import image_folder, saved_run
from vitmae.errors import UserError
from vitmae.models.objective import Objective
from vitmae.models.protocols import Panel, Reconstructs
from vitmae.recipe import Recipe
from vitmae.tokens.masking import draw_mask
from vitmae.tokens.patches import patchify
from vitmae.trained.images import FolderImages
from vitmae.trained.masks import read_mask
from vitmae.trained.model import open_model
from vitmae.trained.reconstruct_folder import complementary_masks, reconstruct_folder, reconstruct_passes

KEYS = torch.arange(3)


@pytest.mark.parametrize("passes", [2, 3, 4, 5, 24])
def test_complementary_masks_hide_each_patch_exactly_once(passes):
    masks = complementary_masks(KEYS, 24, passes)
    hidden = torch.stack([mask.mask for mask in masks])
    assert (hidden.sum(0) == 1).all()
    counts = hidden.sum(2)
    assert counts.min() >= 24 // passes
    assert counts.max() <= -(-24 // passes)
    assert not torch.equal(masks[0].mask[0], masks[0].mask[1])


def test_there_are_at_least_two_passes_and_no_more_than_patches():
    for passes in (0, 1, 25):
        with pytest.raises(UserError, match=f"passes={passes}"):
            complementary_masks(KEYS, 24, passes)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    saved_run(folder)
    return open_model(folder, "cpu", "32-true")


def test_with_passes_every_patch_is_predicted_from_the_others(model):
    images = torch.randint(0, 256, (3, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    result = reconstruct_passes(model, images, KEYS, 4)
    assert result.error.isfinite().all()
    assert result.mask.all()
    for mask in complementary_masks(KEYS, 24, 4):
        part = model.reconstruct_batch(images, mask)
        assert torch.equal(result.error[part.mask], part.error[part.mask])
        pixels = part.mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand(-1, 3, -1, -1)
        assert torch.equal(result.prediction[pixels], part.prediction[pixels])


def reconstruct(model, place, out="out", skip=False, **settings):
    folder = FolderImages(str(place / "photos"), model.preprocess, skip_unreadable=skip)
    settings = {"mask": None, "passes": None, "panels": 2, "batch_size": 4, "num_workers": 0, "seed": 0} | settings
    return reconstruct_folder(model, folder, place / out, **settings)


def rows(place, out="out"):
    with (place / out / "scores.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("passes", [None, 3])
def test_a_folder_gets_scores_errors_and_pictures_of_the_oddest(model, tmp_path, passes):
    image_folder(tmp_path / "photos")
    done = reconstruct(model, tmp_path, passes=passes)
    errors, scored = np.load(tmp_path / "out" / "errors.npy"), rows(tmp_path)
    assert errors.shape == (10, 4, 6)
    assert [row["path"] for row in scored] == sorted(str(path) for path in (tmp_path / "photos").glob("*/*.png"))
    for row, error in zip(scored, errors, strict=True):
        assert np.isfinite(error).sum() == (24 if passes else 18)
        assert float(row["score"]) == pytest.approx(np.nanmean(error), rel=1e-4)
        assert float(row["worst_error"]) == pytest.approx(np.nanmax(error), rel=1e-4)
        assert error[int(row["worst_row"]), int(row["worst_column"])] == np.nanmax(error)
    assert done.count == 10
    assert done.mean == pytest.approx(np.mean([float(row["score"]) for row in scored]), rel=1e-4)
    assert sorted(path.name for path in (tmp_path / "out" / "panels").iterdir()) == ["0001.png", "0002.png"]


def test_the_batch_size_changes_no_score(model, tmp_path):
    image_folder(tmp_path / "photos", count=5)
    for out, batch_size in (("one", 1), ("all", 8)):
        reconstruct(model, tmp_path, out, batch_size=batch_size, panels=0)
    assert np.allclose(
        np.load(tmp_path / "one" / "errors.npy"), np.load(tmp_path / "all" / "errors.npy"), atol=1e-4, equal_nan=True
    )


def test_the_oddest_image_is_the_first_picture(model, tmp_path, monkeypatch):
    from vitmae.trained import reconstruct_folder as reconstruction

    drawn = []
    monkeypatch.setattr(
        reconstruction, "_save_panel", lambda model, folder, number, score, *_: drawn.append((number, score))
    )
    image_folder(tmp_path / "photos")
    reconstruct(model, tmp_path, panels=3)
    scores = [float(row["score"]) for row in rows(tmp_path)]
    assert [number for number, _ in drawn] == np.argsort(scores)[::-1][:3].tolist()
    reconstruct(model, tmp_path, "every", panels=None)
    assert len(drawn) == 3 + 10


def test_unreadable_images_are_left_out_and_nothing_is_written_over(model, tmp_path):
    image_folder(tmp_path / "photos", broken=(4,))
    done = reconstruct(model, tmp_path, skip=True)
    assert (done.count, len(done.unreadable), len(rows(tmp_path))) == (9, 1, 9)
    assert np.isnan(np.load(tmp_path / "out" / "errors.npy")[4]).all()
    with pytest.raises(UserError, match="is there already"):
        reconstruct(model, tmp_path, skip=True)


def test_a_mask_is_a_ratio_a_kind_or_a_picture_that_is_bright_where_it_hides(model, tmp_path):
    assert [read_mask(mask, model.preprocess, model.grid_size) for mask in (None, 0.5, "block")] == [None, 0.5, "block"]
    pixels = np.zeros((32, 48), np.uint8)  # twice the model's size
    pixels[8:16, 24:48] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    hidden = model.mask(read_mask(str(tmp_path / "mask.png"), model.preprocess, model.grid_size), KEYS).mask.view(
        3, 4, 6
    )
    wanted = torch.zeros(4, 6, dtype=torch.bool)
    wanted[1, 3:] = True
    assert torch.equal(hidden, wanted.expand(3, -1, -1))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for mask, reason in (("stripes", "a ratio, random, block, grid"), (str(tmp_path / "broken.png"), "cannot be read")):
        with pytest.raises(UserError, match=reason):
            read_mask(mask, model.preprocess, model.grid_size)


class Grey(Objective, Reconstructs):
    """An objective of a user's own: each hidden patch is predicted to be grey."""

    title, paper, predicts = "grey", "none", "grey"

    def describe(self):
        return {}

    def macs(self):
        return 0

    def measure(self, batch):
        return {"loss": self.backbone(self.normalize(batch.images)).mean()}

    def draw_mask(self, keys, ratio=None, kind=None):
        return draw_mask(keys, self.backbone.grid_size, 0.5 if ratio is None else ratio, kind or "random")

    def panel(self, batch, mask=None):
        images = batch.images / 255
        return Panel(images, images, images * 0 + 0.5, images, "grey")

    def errors(self, images, mask):
        error = patchify(images, self.backbone.patch_size).square().mean(2)
        return error.masked_fill(~mask.mask, float("nan"))


def test_an_objective_of_a_users_own_that_declares_it_reconstructs(model, tmp_path, monkeypatch):
    own = Grey(model.backbone, Recipe(), [0.5] * 3, [0.5] * 3).eval()
    monkeypatch.setattr(model, "objective", own)
    image_folder(tmp_path / "photos", count=4)
    assert reconstruct(model, tmp_path, panels=1).count == 4
    assert np.isfinite(np.load(tmp_path / "out" / "errors.npy")).sum() == 4 * 12
