import pytest

from tests.comparison.parts import planned
from vitmae.comparison.plan import Design
from vitmae.config import check_settings
from vitmae.errors import UserError

DESIGN = {
    "out": "c",
    "methods": ["scratch", "masked_patch", "mae", "supervised"],
    "seeds": [0, 1],
    "labels": 0.1,
    "probes": ["knn"],
    "base_lrs": [],
    "train": ["data=digits"],
    "pretrain": ["trainer.max_epochs=7"],
    "own": {"mae": ["model.mask_ratio=0.6"]},
    "finetune": ["model.pool=avg"],
    "scratch": ["model.pool=cls"],
    "evaluate": ["limit=9"],
}


def rows(folder, **changed):
    return planned(folder, **(DESIGN | changed))[1]


def jobs(folder, **changed):
    return [
        job
        for row in rows(folder, **changed)
        for job in (row.pretrain, *row.finetunes, row.probes, *row.classifiers)
        if job
    ]


def test_each_method_meets_each_seed(tmp_path):
    pairs = [(row.method.name, row.seed) for row in rows(tmp_path)]
    assert sorted(pairs) == sorted((method, seed) for method in DESIGN["methods"] for seed in DESIGN["seeds"])
    assert pairs[:4] == [(method, 0) for method in DESIGN["methods"]], "a first answer comes after one seed"


def test_pretraining_sees_all_images_unless_it_needs_labels(tmp_path):
    share = "data.train_fraction=0.1"
    for row in rows(tmp_path):
        if row.pretrain:
            assert (share in row.pretrain.overrides) == (row.method.name == "supervised")
        for job in (*row.finetunes, row.probes, *row.classifiers):
            assert share in job.overrides
            assert f"seed={row.seed}" in job.overrides


def test_words_reach_the_jobs_that_they_are_for_and_no_others(tmp_path):
    for row in rows(tmp_path):
        trainings = [job for job in (row.pretrain, *row.finetunes) if job]
        assert all("data=digits" in job.overrides for job in trainings)
        assert ("trainer.max_epochs=7" in row.pretrain.overrides) if row.pretrain else row.method.name == "scratch"
        for job in row.finetunes:
            assert "trainer.max_epochs=7" not in job.overrides
            assert "model.pool=avg" in job.overrides
            assert (job.overrides[-1] == "model.pool=cls") == (row.method.name == "scratch"), "the last override wins"
        assert all("limit=9" in job.overrides for job in (row.probes, *row.classifiers))
        if row.pretrain:
            assert ("model.mask_ratio=0.6" in row.pretrain.overrides) == (row.method.name == "mae")


def test_fine_tuning_and_probes_begin_with_what_was_pretrained(tmp_path):
    for row in rows(tmp_path):
        if row.pretrain:
            assert f"backbone.weights={row.pretrain.place}" in row.finetunes[0].overrides
            assert f"ckpt={row.pretrain.place}" in row.probes.overrides
        else:
            assert not any("weights" in override for override in row.finetunes[0].overrides)
            assert "encoder=untrained" in row.probes.overrides
        assert [f"ckpt={job.place}" for job in row.finetunes] == [job.overrides[0] for job in row.classifiers]


def test_no_two_jobs_share_a_place_and_another_setting_is_another_job(tmp_path):
    places = [job.place for job in jobs(tmp_path, base_lrs=[1e-3, 2e-3])]
    assert len(set(places)) == len(places)
    others = [job.place for job in jobs(tmp_path, labels=0.2)]
    unchanged = set(places) & set(others)
    assert all("pretrain" in place.name and "supervised" not in place.name for place in unchanged)


def test_a_folder_may_be_moved(tmp_path):
    names = [[job.place.name for job in jobs(tmp_path / folder)] for folder in ("here", "there")]
    assert names[0] == names[1]


def test_each_candidate_rate_is_tried_by_each_method(tmp_path):
    for row in rows(tmp_path, base_lrs=[1e-3, 2e-3]):
        rates = [
            [override for override in job.overrides if override.startswith("model.optimizer.base_lr=")]
            for job in row.finetunes
        ]
        assert rates == [["model.optimizer.base_lr=0.001"], ["model.optimizer.base_lr=0.002"]]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seeds": [1, 1]}, "occurs twice"),
        ({"base_lrs": [1e-3, 1e-3]}, "occurs twice"),
        ({"probes": ["knn", "knn"]}, "occurs twice"),
        ({"methods": ["mae", "mae"]}, "occurs twice"),
        ({"finetune": ["model=mae"]}, "finetune=model=mae: a comparison sets this itself"),
        ({"own": {"mae": ["seed=1"]}}, "mae=seed=1: a comparison sets this itself"),
        ({"methods": ["scratch"]}, "must contain mae: add it, or leave this out"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changed, said):
    with pytest.raises(UserError, match=said):
        Design(**(DESIGN | changed))


@pytest.mark.parametrize(
    "changed",
    [
        {"seeds": []},
        {"methods": []},
        {"labels": 0.0},
        {"labels": 1.5},
        {"base_lrs": [0.0]},
        {"seeds": [-1]},
        {"probes": ["dense"]},
        {"probes": ["classifier"]},
    ],
)
def test_each_setting_has_its_limits(changed):
    with pytest.raises(UserError, match=next(iter(changed))):
        check_settings({"_target_": "vitmae.comparison.plan.Design", **DESIGN, **changed})


def test_jobs_of_existing_folders_keep_their_names(tmp_path):
    names = {job.place.name for job in jobs(tmp_path, seeds=[0], base_lrs=[1e-3])}
    assert names == {
        "scratch-seed0-finetune-0eda11e0",
        "scratch-seed0-probes-ab9b97c7.json",
        "scratch-seed0-classifier-6aa97dc4.json",
        "masked_patch-seed0-pretrain-8f8c9789",
        "masked_patch-seed0-finetune-96d1e479",
        "masked_patch-seed0-probes-1055b045.json",
        "masked_patch-seed0-classifier-6f22278b.json",
        "mae-seed0-pretrain-7b6b399d",
        "mae-seed0-finetune-5c923a26",
        "mae-seed0-probes-2d3c9e8d.json",
        "mae-seed0-classifier-29a19ce7.json",
        "supervised-seed0-pretrain-94b0b4d9",
        "supervised-seed0-finetune-1a8dfbf0",
        "supervised-seed0-probes-75d3dfcb.json",
        "supervised-seed0-classifier-54b6b9c3.json",
    }


def test_a_users_own_folder_reaches_every_job_and_names_none(tmp_path):
    own_code = ("--config-dir=/home/me/mine", "trust=[mine.objective.Mine]")
    here = jobs(tmp_path)
    there = [
        job
        for row in planned(tmp_path, own_code, **DESIGN)[1]
        for job in (row.pretrain, *row.finetunes, row.probes, *row.classifiers)
        if job
    ]
    assert [job.place for job in here] == [job.place for job in there]
    for job in there:
        assert "--config-dir=/home/me/mine" in job.command
        reads_a_file = any(word.startswith(("ckpt=", "backbone.weights=")) for word in job.overrides)
        assert ("trust=[mine.objective.Mine]" in job.arguments) == reads_a_file, "trust= without a file has no effect"


def test_a_command_is_what_one_would_type(tmp_path):
    job = rows(tmp_path)[0].finetunes[0]
    assert job.command.startswith("python -m vitmae.train model=vit data=digits seed=0 ")
    assert job.command.endswith(f"hydra.run.dir={job.place}")
