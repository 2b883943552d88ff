import csv
import math

import matplotlib.pyplot as plt
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.standin import new_run
from vitmae.errors import UserError
from vitmae.training import loggers as module
from vitmae.training.loggers import MetricsFile, log_figure, read_metrics, tensorboard


def write(run, *rows):
    log = MetricsFile(run)
    for step, metrics in rows:
        log.log_metrics(metrics, step)
    return log


def table(run):
    with open(run.metrics, newline="") as file:
        return list(csv.DictReader(file))


def test_each_step_has_one_row_and_each_metric_one_column(tmp_path):
    run = new_run(tmp_path)
    write(run, (10, {"train/loss": 0.5}), (10, {"val/loss": 0.25}), (20, {"train/loss": 0.125}))
    assert table(run) == [
        {"step": "10", "train/loss": "0.5", "val/loss": "0.25"},
        {"step": "20", "train/loss": "0.125", "val/loss": ""},
    ]


def test_a_row_is_in_the_file_as_soon_as_it_is_logged(tmp_path):
    run = new_run(tmp_path)
    log = MetricsFile(run)
    for step in range(1, 5):
        log.log_metrics({"a": step, "b": -step} if step % 2 else {"a": step}, step)
        assert table(run)[-1]["a"] == str(step)


def test_a_column_that_comes_late_is_empty_above(tmp_path):
    run = new_run(tmp_path)
    write(run, (1, {"a": 1}), (2, {"b": 2}), (2, {"c": 3}), (3, {"a": 4}))
    assert [list(row.values()) for row in table(run)] == [["1", "1", "", ""], ["2", "", "2", "3"], ["3", "4", "", ""]]


def test_a_value_logged_again_at_a_step_replaces_the_first(tmp_path):
    run = new_run(tmp_path)
    write(run, (1, {"a": 123456.0, "b": 1}), (1, {"a": 5}))
    assert table(run) == [{"step": "1", "a": "5", "b": "1"}]


def test_a_resumed_run_replaces_the_steps_that_it_goes_over_again(tmp_path):
    run = new_run(tmp_path)
    write(run, (10, {"a": 1}), (20, {"a": 2}), (30, {"a": 3}), (40, {"a": 4}))
    write(run, (20, {"a": 2.5}), (30, {"a": 3.5}))
    assert [(row["step"], row["a"]) for row in table(run)] == [("10", "1"), ("20", "2.5"), ("30", "3.5")]


def test_what_was_logged_at_the_very_step_of_the_checkpoint_is_kept(tmp_path):
    run = new_run(tmp_path)
    write(run, (10, {"a": 1}), (20, {"a": 2, "val/loss": 7}), (30, {"a": 3}))
    write(run, (20, {"probe/knn": 0.5}), (30, {"a": 3}))
    assert table(run)[1] == {"step": "20", "a": "2", "val/loss": "7", "probe/knn": "0.5"}
    assert len(table(run)) == 3


def test_a_row_that_was_cut_off_by_a_kill_is_dropped(tmp_path):
    run = new_run(tmp_path)
    write(run, (10, {"a": 1}), (20, {"a": 2}))
    with open(run.metrics, "a") as file:
        file.write("30,3.14159")
    write(run, (40, {"a": 4}))
    assert [(row["step"], row["a"]) for row in table(run)] == [("10", "1"), ("20", "2"), ("40", "4")]


def test_values_keep_the_precision_of_float32_and_what_is_not_finite(tmp_path):
    run = new_run(tmp_path)
    write(run, (1, {"a": 0.1 + 2**-30, "b": math.nan, "c": math.inf}))
    row = table(run)[0]
    assert float(row["a"]) == pytest.approx(0.1 + 2**-30, rel=2**-24)
    assert (row["b"], row["c"]) == ("nan", "inf")


def test_an_absent_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.csv") == ([], [])


def test_tensorboard_gets_scalars_and_figures_below_the_run(tmp_path):
    run = new_run(tmp_path)
    log = tensorboard(run)
    figure = plt.figure()
    log.log_metrics({"val/loss": 0.5}, 3)
    log_figure([MetricsFile(run), log], "val/reconstruction", figure, 3)
    log.finalize("success")
    assert plt.fignum_exists(figure.number)  # it is its maker's to close
    plt.close(figure)
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("val/loss")] == [(3, 0.5)]
    assert [event.step for event in events.Images("val/reconstruction")] == [3]


def test_a_missing_tensorboard_is_one_line_with_the_remedy(tmp_path, monkeypatch):
    def refuse(**settings):
        raise ModuleNotFoundError

    monkeypatch.setattr(module, "TensorBoardLogger", refuse)
    with pytest.raises(UserError, match=r"pip install \"vitmae\[tensorboard\]\""):
        tensorboard(new_run(tmp_path))
