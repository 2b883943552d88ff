import csv
import io
import re

import pytest
import torch

from tests.comparison.parts import finish, planned
from vitmae.comparison.report import accuracy_table, commands, cost_table, write_report
from vitmae.comparison.results import Line, cost, curve, gather
from vitmae.comparison.runner import best_classifier
from vitmae.plots.reconstruction import reconstruction_figure
from vitmae.probes.confidence import wilson_interval


@pytest.fixture
def done(tmp_path):
    """A comparison that is done: accuracies 0.5 and 0.6 from scratch, 0.7 and 0.8 by MAE."""
    design, rows = planned(tmp_path)
    for row in rows:
        accuracy = 0.5 + 0.1 * row.seed + 0.2 * (row.method.name == "mae")
        for job in (row.pretrain, *row.finetunes, row.probes, *row.classifiers):
            if job:
                finish(job, accuracy)
    return design, rows


def test_a_cell_is_the_mean_over_seeds_with_its_deviation(done, tmp_path):
    results = gather(done[1], tmp_path)
    cell = results.table[Line("fine-tuning", "avg")]["mae"]
    assert cell.mean == pytest.approx(0.75)
    assert cell.std == pytest.approx(0.0707, abs=1e-4)
    assert cell.interval == wilson_interval(0.75, 400), "seeds see the same test images: more seeds are no more images"
    assert not results.missing


def test_knn_counts_at_the_k_that_was_best_classifier(done, tmp_path):
    results = gather(done[1], tmp_path)
    assert results.table[Line("knn", "avg")]["scratch"].per_seed == {0: 0.5, 1: 0.6}


def test_lines_come_in_order_and_monitors_without_accuracy_are_left_out(done, tmp_path):
    labels = [line[0] for line in accuracy_table(gather(done[1], tmp_path))[1:]]
    assert labels == ["kNN, avg", "5-shot, cls", "fine-tuning"]


def test_images_are_counted_over_all_processes_and_accumulated_batches(done, tmp_path):
    results = gather(done[1], tmp_path)
    cost = results.costs["mae", "pretrain"][0]
    assert cost.images == 10 * 64 * 2 * 2
    twice = done[1][1].pretrain.place / "metrics.csv"
    twice.write_text(twice.read_text().replace("\n10,", "\n20,"))
    again = gather(done[1], tmp_path).costs["mae", "pretrain"][0]
    assert (again.images, again.flops) == (2 * cost.images, pytest.approx(2 * cost.flops))
    assert again.flops / again.images > 6 * 16 * 4 * 16, "more than the patch projection"
    assert set(results.costs) == {("scratch", "finetune"), ("mae", "pretrain"), ("mae", "finetune")}
    assert len(cost_table(results)) == 4


def test_the_best_mean_of_each_line_is_bold_and_no_other(done, tmp_path):
    design, rows = done
    page = write_report(design, rows, gather(rows, tmp_path), tmp_path)[0].read_text()
    assert re.findall(r"<td class=best>([\d.]+)", page) == ["75.0", "37.5", "75.0"]  # all of MAE


def test_what_is_not_done_is_named_and_the_rest_is_reported(tmp_path):
    design, rows = planned(tmp_path)
    for job in (*rows[0].finetunes, rows[0].probes, *rows[0].classifiers):
        finish(job)
    results = gather(rows, tmp_path)
    assert "mae, seed 0, pretrain" in results.missing
    assert not any(name.startswith("scratch, seed 0") for name in results.missing)
    page = write_report(design, rows, results, tmp_path)[0].read_text()
    assert "Not done" in page
    assert "50.0" in page


def test_an_empty_comparison_has_a_page_too(tmp_path):
    design, rows = planned(tmp_path)
    assert all(path.is_file() for path in write_report(design, rows, gather(rows, tmp_path), tmp_path))


def test_the_page_needs_nothing_beside_it(done, tmp_path):
    picture = torch.rand(2, 1, 8, 8)
    figure = reconstruction_figure(picture, picture, picture, picture, "pixels")
    figure.savefig(done[1][1].pretrain.place / "figures" / "reconstruction.png")
    files = write_report(*done, gather(done[1], tmp_path), tmp_path)
    assert [file.name for file in files] == ["report.html", "report.md", "report.csv"]
    page = files[0].read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in page
    assert page.count("data:image/png;base64,") == 3, "accuracies, curves, reconstructions"
    for line in accuracy_table(gather(done[1], tmp_path))[1:]:
        assert all(cell in page and cell in files[1].read_text() for cell in line)


def test_the_exact_command_of_each_row_is_there(done, tmp_path):
    files = write_report(*done, gather(done[1], tmp_path), tmp_path)
    named = dict(commands(done[1]))
    assert len(named) == 2 * (3 + 4)
    assert all(command in files[1].read_text() for command in named.values())
    assert best_classifier(done[1][0]).command in named.values()


def test_the_csv_holds_every_seed(done, tmp_path):
    text = write_report(*done, gather(done[1], tmp_path), tmp_path)[2].read_text()
    lines = list(csv.DictReader(io.StringIO(text)))
    tuned = {
        (line["method"], line["seed"]): float(line["accuracy"]) for line in lines if line["probe"] == "fine-tuning"
    }
    assert tuned == pytest.approx({("scratch", "0"): 0.5, ("scratch", "1"): 0.6, ("mae", "0"): 0.7, ("mae", "1"): 0.8})


def test_validation_images_are_not_called_test_images(tmp_path):
    design, rows = planned(tmp_path, train=["data=folder", "data.path=a b"])
    for job in (*rows[0].finetunes, rows[0].probes, *rows[0].classifiers):
        finish(job, split="val")
    for file in write_report(design, rows, gather(rows, tmp_path), tmp_path)[:2]:
        page = file.read_text()
        assert "400 validation images" in page
        assert "too high" in page
        assert "Test accuracy" not in page
        assert "data=folder" in page, "what all runs share"


def test_parameters_are_those_of_the_runs_own_classes(done, tmp_path):
    job = done[1][0].finetunes[0]
    seven = cost(job, tmp_path).parameters
    torch.save({"state_dict": {"head.bias": torch.zeros(9)}}, job.place / "checkpoints" / "last.ckpt")
    assert cost(job, tmp_path).parameters - seven == 2 * (16 + 1)
    (job.place / "checkpoints" / "last.ckpt").unlink()
    assert cost(job, tmp_path).parameters < seven


def test_a_comparison_that_an_older_version_began_is_reported(done, tmp_path):
    job = done[1][0].finetunes[0]
    before, config = cost(job, tmp_path), job.place / "config.yaml"
    assert "vitmae.recipe.Recipe" in config.read_text()
    config.write_text(config.read_text().replace("vitmae.recipe.Recipe", "vitmae.training.optim.Recipe"))
    assert cost(job, tmp_path) == before


def test_a_number_of_classes_is_known_of_a_head_under_any_name(done, tmp_path):
    job = done[1][0].finetunes[0]
    seven = cost(job, tmp_path).parameters
    content = {"state_dict": {"my_head.bias": torch.zeros(9)}, "vitmae_facts": {"num_classes": 9}}
    torch.save(content, job.place / "checkpoints" / "last.ckpt")
    assert cost(job, tmp_path).parameters - seven == 2 * (16 + 1)


def test_a_curve_counts_epochs_from_one(done):
    assert [pytest.approx(point) for point in curve(done[1][1].pretrain.place)["val/loss"]] == [(1, 0.7), (2, 0.6)]
