from dataclasses import replace

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from tests.evaluation.parts import digits_data, digits_run, probe_data
from tests.probes.parts import clusters
from tests.weights.parts import build, save_checkpoint, settings
from vitmae.config import build as build_node
from vitmae.errors import UserError
from vitmae.evaluation.probe_data import AugmentedFeatures
from vitmae.evaluation.probes import (
    KNN,
    Attentive,
    Classifier,
    CollapseMonitors,
    Dense,
    FewShot,
    Linear,
    Logistic,
)
from vitmae.probes.features import Features
from vitmae.weights.saved import read_saved
from vitmae.weights.write import write_weights

SHORT = {"epochs": 2, "warmup_epochs": 1}
ALL = [KNN(), Linear(**SHORT), Logistic(cs=[1.0]), FewShot(shots=[1, 5]), Attentive(base_lrs=[1e-2], **SHORT)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return digits_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.mark.parametrize("probe", ALL, ids=lambda probe: type(probe).__name__)
@pytest.mark.parametrize("scored", ["test", "val"])
def test_a_probe_scores_every_image_of_its_split_and_says_how_sure_it_is(run, cache, probe, scored):
    scores = probe.run(probe_data(run, cache, scored=scored))
    assert {score.pooling for score in scores} in ({"cls", "avg"}, {"patches"})
    for score in scores:
        assert score.num_images == {"test": 360, "val": 288}[scored]
        assert score.interval[0] <= score.value <= score.interval[1]


@pytest.mark.parametrize("probe", ALL, ids=lambda probe: type(probe).__name__)
def test_what_is_chosen_does_not_depend_on_the_test_labels(run, cache, probe):
    data = probe_data(run, cache)
    honest = probe.run(data)
    train, val, test = data.features(patches=True)
    shuffled = Features(test.pooled, test.labels[torch.randperm(len(test))], test.patches, test.grid_size)
    data.features = lambda patches=False: (train, val, shuffled)
    cheated = probe.run(data)
    assert [score.setting for score in cheated] == [score.setting for score in honest]
    assert [score.is_chosen for score in cheated] == [score.is_chosen for score in honest]
    assert [score.value for score in cheated] != [score.value for score in honest]


def test_validation_images_are_scored_without_a_look_at_the_test_split(run, cache, monkeypatch):
    data = probe_data(run, cache, scored="val")
    asked = []
    store = data.store
    monkeypatch.setattr(data, "store", lambda split, patches=False: asked.append(split) or store(split, patches))
    train, val, scored = data.features()
    assert set(asked) == {"train", "val"}
    assert (len(train) + len(val), len(scored)) == (len(store("train")), 288)
    assert len(val) == pytest.approx(0.1 * len(store("train")), abs=5)


def test_knn_marks_the_k_that_the_validation_images_prefer(run, cache):
    data = probe_data(run, cache)
    train, val, _ = data.features()
    scores = [score for score in KNN(ks=[1, 5, 100]).run(data) if score.pooling == "avg"]
    unit = [torch.nn.functional.normalize(part.pooled["avg"]).numpy() for part in (train, val)]
    accuracies = {}
    for k in (1, 5, 100):
        twin = KNeighborsClassifier(k, weights=lambda d: torch.exp((1 - torch.tensor(d) ** 2 / 2) / 0.07).numpy())
        accuracies[k] = twin.fit(unit[0], train.labels).score(unit[1], val.labels)
    assert [score.is_chosen for score in scores] == [k == max(accuracies, key=accuracies.get) for k in (1, 5, 100)]


def test_fewshot_leaves_out_what_the_smallest_class_does_not_have_and_says_so(run, cache, caplog):
    data = digits_data(train_fraction=0.06)
    with caplog.at_level("INFO"):
        scores = FewShot(shots=[1, 5, 1000]).run(probe_data(run, cache, data=data))
    assert "1000 shots are left out" in caplog.text
    assert {score.setting["shots"] for score in scores} == {1, 5}
    with pytest.raises(UserError, match="the smallest class has"):
        FewShot(shots=[1000]).run(probe_data(run, cache, data=data))


def test_an_augmented_probe_sees_other_crops_in_every_epoch(run, cache):
    data = probe_data(run, cache)
    count = data.images.num_train
    batches = list(AugmentedFeatures(data, count, count // 3, epochs=2))
    assert len(batches) == 2 * 3
    assert all(features.shape == (2, count // 3, 16) and len(labels) == count // 3 for features, labels in batches)
    first, second = (
        {tuple(row) for features, _ in part for row in features[1].tolist()} for part in (batches[:3], batches[3:])
    )
    assert first != second
    plain = {tuple(row) for row in data.store("train").pooled["avg"].tolist()}
    assert 0 < len(first - plain) < len(first), "half of the images are mirrored"


def test_without_augmentation_the_augmented_probe_sees_the_cached_features(run, cache):
    data = probe_data(run, cache, data=digits_data(hflip=False, batch_size=50))
    features, labels = next(iter(AugmentedFeatures(data, 100, 100, epochs=1)))
    cached = {
        tuple(row): label
        for row, label in zip(
            data.store("train").pooled["avg"].tolist(), data.store("train").labels.tolist(), strict=True
        )
    }
    seen = [min(cached, key=lambda row: (torch.tensor(row) - vector).abs().max()) for vector in features[1][:10]]
    for row, vector, label in zip(seen, features[1], labels, strict=False):
        torch.testing.assert_close(torch.tensor(row), vector, rtol=0, atol=1e-5)
        assert cached[row] == label


def test_an_augmented_probe_trains_on_all_or_not_at_all(run, cache):
    with pytest.raises(UserError, match="split=test and limit=null"):
        Linear(augment=True).run(probe_data(run, cache, scored="val"))
    scores = Linear(augment=True, **SHORT).run(probe_data(run, cache))
    assert len(scores) == 2


def test_of_neighbours_that_do_equally_well_the_first_number_is_chosen(run, cache):
    sets = probe_data(run, cache)
    sets.features = lambda: (clusters(80), clusters(40, split="val"), clusters(40, split="test"))
    scores = KNN(ks=[5, 1, 10]).run(sets)
    assert {score.value for score in scores} == {1.0}
    assert [score.setting["k"] for score in scores if score.is_chosen] == [1, 1]


def test_collapse_is_measured_without_labels(run, cache):
    scores = CollapseMonitors().run(probe_data(run, cache))
    assert {(score.pooling, score.metric) for score in scores} == {
        (pooling, metric) for pooling in ("cls", "avg") for metric in ("RankMe", "feature std")
    }


def test_a_classifier_is_scored_by_its_own_head(tmp_path, cache):
    run = digits_run(tmp_path / "run", "vit", num_classes=10)
    data = probe_data(run, cache)
    (score,) = Classifier().run(data)
    right = sum(
        int((data.model.objective(data.model.objective.normalize(batch.images)).argmax(1) == batch.labels).sum())
        for batch in data.images.evaluation_dataloader("test")
    )
    assert score.value == pytest.approx(right / 360)
    assert score.num_images == 360


def test_a_classifier_of_other_classes_is_refused(run, tmp_path, cache):
    with pytest.raises(UserError, match="fine-tune it"):
        Classifier().run(probe_data(run, cache))
    other = digits_run(tmp_path / "run", "vit", classes="0123456", num_classes=7)
    with pytest.raises(UserError, match=r"knows 7 classes \(0, 1, 2, …\), and the data has 10"):
        Classifier().run(probe_data(other, cache))
    named = digits_run(tmp_path / "named", "vit", classes="abcdefghij", num_classes=10)
    with pytest.raises(UserError, match=r"knows 10 classes \(a, b, c, …\)"):
        Classifier().run(probe_data(named, cache))


def test_a_classifier_with_room_for_more_classes_is_scored(tmp_path, cache):
    run = digits_run(tmp_path / "run", "vit", num_classes=12)
    assert Classifier().run(probe_data(run, cache))[0].num_images == 360


def test_an_encoder_alone_has_no_classifier(tmp_path, cache):
    saved = read_saved(digits_run(tmp_path / "run", "vit", num_classes=10))
    write_weights(saved, "bundle", "encoder", tmp_path / "bundle")
    with pytest.raises(UserError, match="fine-tune it with model=vit"):
        Classifier().run(probe_data(tmp_path / "bundle", cache))


@pytest.mark.parametrize(
    ("probe", "settings", "said"),
    [
        (KNN, {"ks": []}, "knn.ks"),
        (KNN, {"ks": [0, 5]}, "knn.ks"),
        (KNN, {"temperature": 0.0}, "knn.temperature"),
        (Linear, {"batch_size": 0}, "linear.batch_size"),
        (Linear, {"epochs": 5}, "linear.warmup_epochs"),
        (Linear, {"base_lrs": [-1.0]}, "linear.base_lrs"),
        (Logistic, {"cs": []}, "logistic.cs"),
        (Logistic, {"cs": [-1.0]}, "logistic.cs"),
        (Logistic, {"val_fraction": 1.5}, "logistic.val_fraction"),
        (FewShot, {"shots": [0]}, "fewshot.shots"),
        (FewShot, {"seeds": []}, "fewshot.seeds"),
        (FewShot, {"l2": 0.0}, "fewshot.l2"),
        (Attentive, {"base_lrs": []}, "attentive.base_lrs"),
        (Attentive, {"num_heads": 0}, "attentive.num_heads"),
        (Attentive, {"batch_size": 0}, "attentive.batch_size"),
        (Dense, {"epochs": 0, "warmup_epochs": 0}, "dense.epochs"),
        (Dense, {"batch_size": 0}, "dense.batch_size"),
    ],
)
def test_what_no_probe_can_do_is_refused_before_images_are_read(probe, settings, said):
    with pytest.raises(UserError, match=said):
        probe(**settings)


@pytest.mark.parametrize("loaded", [20, 64, 300])
def test_an_augmented_epoch_has_its_steps_however_images_are_loaded(run, cache, loaded):
    data = probe_data(run, cache, data=digits_data(batch_size=loaded))
    batches = list(AugmentedFeatures(data, data.images.num_train, 32, epochs=2))
    assert len(batches) == 2 * (data.images.num_train // 32)


@pytest.mark.parametrize("scored", ["test", "val"])
def test_dense_reads_pixels_of_the_images_that_its_tokens_are_of(tmp_path, cache, scored):
    source = {"_target_": "vitmae.data.sources.shapes.Shapes", "num_train": 48, "num_val": 16, "num_test": 16}
    backbone = {"img_size": [16, 16], "in_chans": 3, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    data = {
        "_target_": "vitmae.data.datamodule.ImageData",
        "source": source,
        "img_size": 16,
        "in_chans": 3,
        "batch_size": 8,
        "num_workers": 0,
    }
    config = settings("mae", backbone) | {"data": data, "seed": 0}
    save_checkpoint(tmp_path / "checkpoints" / "last.ckpt", build("mae", backbone), config)
    made = build_node(data)
    made.prepare()
    data = probe_data(tmp_path, cache, data=made, scored=scored, token_images=24)
    parts = data.segmented()
    assert all(len(part.features) == len(part.masks) for part in parts)
    assert len(parts[2].masks) == 16
    whole = torch.cat([batch.masks for batch in made.evaluation_dataloader(scored, 24, masks=True)])
    assert torch.equal(parts[2].masks, whole)
    (score,) = replace(Dense(), epochs=2, warmup_epochs=1).run(data)
    assert score.metric == "mean IoU"
    assert 0 <= score.interval[0] <= score.value <= score.interval[1] <= 1
