import pytest
import torch

import vitmae
from tests.evaluation.parts import digits_data, digits_run, probe_data
from tests.weights.parts import build, save_checkpoint, settings
from vitmae.config import build as build_node
from vitmae.errors import UserError
from vitmae.evaluation.data_settings import of_run
from vitmae.trained.model import Model
from vitmae.weights.saved import build_objective, read_saved


@pytest.fixture
def run(tmp_path):
    return digits_run(tmp_path / "run")


def test_features_are_those_of_the_whole_image_with_nothing_hidden(run, tmp_path):
    data = digits_data()
    features = probe_data(run, tmp_path / "cache", data=data).store("test")
    images = torch.cat([batch.images for batch in data.evaluation_dataloader("test")])
    encoded = vitmae.load(run, "cpu", "32-true").encode_batch(images, "avg")
    torch.testing.assert_close(features.pooled["avg"], encoded, rtol=0, atol=1e-6)


def test_a_set_is_encoded_once(run, tmp_path, monkeypatch):
    first = probe_data(run, tmp_path / "cache").store("val")
    monkeypatch.setattr(Model, "features", lambda *given: pytest.fail("encoded again"))
    again = probe_data(run, tmp_path / "cache").store("val")
    assert torch.equal(first.pooled["cls"], again.pooled["cls"])


def test_pooled_features_come_with_the_patch_tokens_where_those_are_made(run, tmp_path, monkeypatch):
    store = probe_data(run, tmp_path / "cache", token_images=1000).store  # more than there are: it is all of them
    tokens = store("val", patches=True)
    assert len(tokens) == 288
    assert tokens.patches.shape[1:] == (16, 16)
    other = probe_data(run, tmp_path / "cache", token_images=None).store
    monkeypatch.setattr(Model, "features", lambda *given: pytest.fail("encoded again"))
    pooled = other("val")
    assert pooled.patches is None
    assert torch.equal(pooled.pooled["avg"], tokens.pooled["avg"])


@pytest.mark.parametrize(
    "changed",
    [
        {"data": {"train_fraction": 0.5}},
        {"data": {"seed": 1}},
        {"limit": 20},
        {"untrained": True},
        {"precision": "bf16-mixed"},
        {"img_size": (12, 12), "data": {"img_size": [12, 12]}},
    ],
)
def test_other_features_are_not_taken_for_these(run, tmp_path, changed):
    probe_data(run, tmp_path / "cache").store("train")
    made = changed | ({"data": digits_data(**changed["data"])} if "data" in changed else {})
    probe_data(run, tmp_path / "cache", **made).store("train")
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("what", ["mean", "std", "num_heads"])
def test_the_key_knows_what_is_no_weight_of_the_encoder(run, tmp_path, what):
    probe_data(run, tmp_path / "cache").store("val")
    sets = probe_data(run, tmp_path / "cache")
    if what == "num_heads":
        sets.model.backbone.num_heads = 4
    else:
        getattr(sets.model.objective, what).fill_(0.7)
    sets.store("val")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_fewer_patch_tokens_than_images_are_kept_on_request(run, tmp_path):
    store = probe_data(run, tmp_path / "cache", token_images=30).store
    assert len(store("test", patches=True)) == 30
    assert len(store("test")) == 360


def test_an_untrained_encoder_has_the_fresh_weights_of_the_runs_seed(run):
    saved = read_saved(run)
    made = [Model(saved, torch.device("cpu"), untrained=True) for _ in range(2)]
    trained = Model(saved, torch.device("cpu"))
    weights = [encoder.backbone.state_dict()["vit.blocks.0.attn.qkv.weight"] for encoder in (*made, trained)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    torch.manual_seed(3)
    fresh = build_objective(saved).backbone.state_dict()["vit.blocks.0.attn.qkv.weight"]
    assert torch.equal(weights[0], fresh)


def test_building_an_untrained_encoder_leaves_torchs_generator_alone(run):
    before = torch.get_rng_state()
    Model(read_saved(run), torch.device("cpu"), untrained=True)
    assert torch.equal(before, torch.get_rng_state())


def test_another_size_keeps_the_weights_and_interpolates_positions_only(run, caplog):
    saved = read_saved(run)
    with caplog.at_level("INFO"):
        larger = Model(saved, torch.device("cpu"), img_size=(12, 16))
    assert "trained at 8 x 8, used at 12 x 16 pixels" in caplog.text
    assert larger.backbone.grid_size == (6, 8)
    ours, theirs = larger.objective.state_dict(), saved.state
    differing = {
        name for name in theirs if ours[name].shape != theirs[name].shape or not ours[name].equal(theirs[name])
    }
    assert all("pos_embed" in name for name in differing), differing
    assert differing


@pytest.mark.parametrize("limits", [{"limit": 0}, {"token_images": 0}])
def test_a_limit_that_leaves_nothing_is_refused(run, tmp_path, limits):
    with pytest.raises(UserError, match=r"=0: must be ≥ 1 or null"):
        probe_data(run, tmp_path, **limits)


def test_the_images_of_a_run_are_seen_as_in_its_own_validation(tmp_path):
    """Drawn at the model's size they are whole, also from 96 to 224 pixels, where photographs lose an eighth."""
    source = {"_target_": "vitmae.data.sources.shapes.Shapes", "num_train": 16, "num_val": 8, "num_test": 8}
    backbone = {"img_size": [96, 96], "in_chans": 3, "patch_size": 48, "embed_dim": 16, "depth": 1, "num_heads": 2}
    data = {
        "_target_": "vitmae.data.datamodule.ImageData",
        "source": source,
        "img_size": 96,
        "in_chans": 3,
        "batch_size": 4,
        "num_workers": 0,
    }
    made = build("mae", backbone)
    save_checkpoint(tmp_path / "checkpoints" / "last.ckpt", made, settings("mae", backbone) | {"data": data, "seed": 0})
    images = []
    for node in (data, of_run(read_saved(tmp_path))):
        prepared = build_node(node)
        prepared.prepare()
        images.append(next(iter(prepared.evaluation_dataloader("val"))).images)
    assert torch.equal(*images)


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", False)])
def test_features_are_made_by_the_attention_that_is_fast_here(run, precision, fused):
    made = Model(read_saved(run), torch.device("cpu"), precision)
    assert {part.fused_attn for part in made.backbone.modules() if hasattr(part, "fused_attn")} == {fused}
