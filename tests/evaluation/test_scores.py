import math

import pytest

from vitmae.errors import UserError
from vitmae.evaluation.scores import Score, as_csv, as_table, read_scores, write_scores
from vitmae.tables import as_markdown, as_text

SCORES = [
    Score("trained", "knn", "cls", "accuracy", 0.5, 40, (0.35, 0.65), {"k": 5, "temperature": 0.07}, is_chosen=True),
    Score(
        "trained", "fewshot", "avg", "accuracy", 0.4, 40, (0.26, 0.55), {"shots": 5, "l2": 1024}, per_seed=(0.3, 0.5)
    ),
    Score("untrained", "collapse", "cls", "RankMe", 3.25, 40),
]


def test_what_is_written_is_read_back(tmp_path):
    files = write_scores(tmp_path / "deep" / "scores.json", SCORES, {"split": "test"})
    assert [file.suffix for file in files] == [".json", ".md", ".csv"]
    assert all(file.is_file() for file in files)
    assert read_scores(files[0]) == (SCORES, {"split": "test"})


def test_what_is_not_a_number_survives(tmp_path):
    broken = Score("trained", "collapse", "cls", "RankMe", math.nan, 40)
    write_scores(tmp_path / "scores.json", [broken], {})
    (back,), _ = read_scores(tmp_path / "scores.json")
    assert math.isnan(back.value)


def test_a_table_shows_value_deviation_interval_and_number_of_images():
    text = as_text(as_table(SCORES))
    assert len(text.splitlines()) == 5
    assert "k 5 *" in text
    assert "50.0 %" in text
    assert "35.0 to 65.0" in text
    assert "40.0 ± 14.1 %" in text
    assert "3.25" in text
    assert as_markdown(as_table(SCORES)).count("\n") == 5
    assert as_csv(SCORES).splitlines()[1].endswith("0.5,0.35,0.65,40,True")


@pytest.mark.parametrize("content", ["", "{}", '{"scores": [{"a": 1}]}'])
def test_another_file_is_no_evaluation(tmp_path, content):
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(UserError, match="is not an evaluation"):
        read_scores(tmp_path / "scores.json")
