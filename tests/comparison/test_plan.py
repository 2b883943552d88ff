import pytest

from vitmae.comparison.plan import Design, plan
from vitmae.errors import UserError

DESIGN = {
    "methods": ["scratch", "masked_patch", "mae", "supervised"],
    "seeds": [0, 1],
    "labels": 0.1,
    "probes": ["knn"],
    "base_lrs": [],
    "common": ["data=digits"],
    "pretrain": ["trainer.max_epochs=7"],
    "masked_patch": [],
    "mae": ["model.mask_ratio=0.6"],
    "supervised": [],
    "finetune": ["model.pool=avg"],
    "scratch": ["model.pool=cls"],
    "evaluate": ["limit=9"],
}


def rows(folder, **changed):
    return plan(Design(**(DESIGN | changed)), folder)


def jobs(folder, **changed):
    return [
        job
        for row in rows(folder, **changed)
        for job in (row.pretrain, *row.finetunes, row.probes, *row.classifiers)
        if job
    ]


def test_each_method_meets_each_seed(tmp_path):
    pairs = [(row.method, row.seed) for row in rows(tmp_path)]
    assert sorted(pairs) == sorted((method, seed) for method in DESIGN["methods"] for seed in DESIGN["seeds"])
    assert pairs[:4] == [(method, 0) for method in DESIGN["methods"]], "a first answer comes after one seed"


def test_pretraining_sees_all_images_unless_it_needs_labels(tmp_path):
    share = "data.train_fraction=0.1"
    for row in rows(tmp_path):
        if row.pretrain:
            assert (share in row.pretrain.words) == (row.method == "supervised")
        for job in (*row.finetunes, row.probes, *row.classifiers):
            assert share in job.words
            assert f"seed={row.seed}" in job.words


def test_words_reach_the_jobs_that_they_are_for_and_no_others(tmp_path):
    for row in rows(tmp_path):
        trainings = [job for job in (row.pretrain, *row.finetunes) if job]
        assert all("data=digits" in job.words for job in trainings)
        assert ("trainer.max_epochs=7" in row.pretrain.words) if row.pretrain else row.method == "scratch"
        for job in row.finetunes:
            assert "trainer.max_epochs=7" not in job.words
            assert "model.pool=avg" in job.words
            assert (job.words[-1] == "model.pool=cls") == (row.method == "scratch"), "the last word wins"
        assert all("limit=9" in job.words for job in (row.probes, *row.classifiers))
        if row.pretrain:
            assert ("model.mask_ratio=0.6" in row.pretrain.words) == (row.method == "mae")


def test_fine_tuning_and_probes_begin_with_what_was_pretrained(tmp_path):
    for row in rows(tmp_path):
        if row.pretrain:
            assert f"backbone.weights={row.pretrain.place}" in row.finetunes[0].words
            assert f"ckpt={row.pretrain.place}" in row.probes.words
        else:
            assert not any("weights" in word for word in row.finetunes[0].words)
            assert "encoder=untrained" in row.probes.words
        assert [f"ckpt={job.place}" for job in row.finetunes] == [job.words[0] for job in row.classifiers]


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
        rates = [[word for word in job.words if word.startswith("model.optimizer.base_lr=")] for job in row.finetunes]
        assert rates == [["model.optimizer.base_lr=0.001"], ["model.optimizer.base_lr=0.002"]]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seeds": []}, "seeds"),
        ({"methods": []}, "methods"),
        ({"seeds": [1, 1]}, "twice"),
        ({"labels": 0.0}, "labels"),
        ({"labels": 1.5}, "labels"),
        ({"base_lrs": [1e-3, 1e-3]}, "twice"),
        ({"base_lrs": [0.0]}, "above 0"),
        ({"seeds": [-1]}, "from 0"),
        ({"probes": ["knn", "knn"]}, "twice"),
        ({"probes": ["dense"]}, "accuracies of knn"),
        ({"probes": ["classifier"]}, "accuracies of knn"),
    ],
)
def test_what_cannot_be_compared_is_refused(changed, said):
    with pytest.raises(UserError, match=said):
        Design(**(DESIGN | changed))


def test_a_command_is_what_one_would_type(tmp_path):
    job = rows(tmp_path)[0].finetunes[0]
    assert job.command.startswith("python -m vitmae.train model=vit data=digits seed=0 ")
    assert job.command.endswith(f"hydra.run.dir={job.place}")
