"""What must work with the oldest versions that pyproject.toml allows: `make test-oldest` runs this file with them."""

import re
import tomllib
from pathlib import Path

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

import vitmae
from tests import oldest
from tests.models.parts import OBJECTIVES, batch, objective, tiny_backbone
from tests.training.runs import digits, tiny_objective, trainer
from tests.training.standin import QUIET, KillBefore, new_run, train
from vitmae.backbones.blocks import TESTED_TIMM
from vitmae.runs.checkpoint_file import read_checkpoint

pytestmark = QUIET
FIXTURES = Path(__file__).parent / "fixtures"


def test_the_constraints_of_the_oldest_versions_are_the_lower_ends_of_the_ranges():
    assert (oldest.ROOT / "constraints-oldest.txt").read_text() == oldest.constraints()
    lines = oldest.constraints().splitlines()[1:]
    assert lines
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in lines)


def test_the_versions_of_timm_that_an_error_names_are_those_of_the_range():
    dependencies = tomllib.loads((oldest.ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (range_of_timm,) = (line for line in dependencies if line.startswith("timm"))
    pinned = re.search(r"^timm==(\S+)$", (oldest.ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert re.search(r">=([\d.]+)", range_of_timm)[1] in TESTED_TIMM
    assert pinned[1] in TESTED_TIMM


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_each_objective_takes_a_step(kind):
    model = objective(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.measure(batch(model.backbone))["loss"]
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_each_objective_trains_and_validates_under_the_trainer(tmp_path, kind):
    data = digits()
    run = trainer(tmp_path, [], max_epochs=1)
    run.fit(tiny_objective(kind, data), datamodule=data)
    assert run.callback_metrics["val/loss"].isfinite()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_a_backbone_computes_what_timm_computes(name):
    backbone = tiny_backbone(name).double().eval()
    sizes = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 32, "num_heads": 2, "depth": 2}
    theirs = timm.create_model(name, num_classes=0, global_pool="", **sizes).double().eval()
    assert isinstance(theirs, VisionTransformer)
    theirs.load_state_dict(backbone.vit.state_dict())
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    assert (backbone(images) - theirs.forward_features(images)).abs().max() < 1e-10


def test_a_run_killed_within_an_epoch_is_resumed_where_it_was(tmp_path):
    whole = train(new_run(tmp_path / "whole"), 1, max_epochs=2)
    run = new_run(tmp_path / "killed")
    train(run, 1, (KillBefore(4),), max_epochs=2)
    resumed = train(run, 1, ckpt=run.last, max_epochs=2)
    assert whole.trace[-len(resumed.trace) :] == resumed.trace
    assert torch.equal(whole.weights, resumed.weights)


def test_a_checkpoint_and_a_bundle_of_the_first_format_are_loaded():
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    for saved in ("mae_format1.ckpt", "vit_bundle_format1"):
        vectors = vitmae.load(FIXTURES / saved, device="cpu").encode(images)
        assert vectors.shape[0] == 2
        assert vectors.isfinite().all()
    assert read_checkpoint(FIXTURES / "mae_format1.ckpt")["global_step"] == 6
