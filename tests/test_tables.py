import pytest

from vitmae.tables import as_markdown, as_text

TABLE = [("methods", "note"), ("[bold]", ":smile: a|b"), ("word " * 60, "")]


def test_a_cell_is_printed_as_it_is_written_and_never_folded():
    header, rule, first, second = as_text(TABLE).splitlines()
    assert header.split() == ["methods", "note"]
    assert set(rule) == {"─"}
    assert first.split("  ")[0] == "[bold]"
    assert first.endswith(":smile: a|b")
    assert second == ("word " * 60).rstrip()


def test_a_log_gets_no_colours_even_where_they_are_forced(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in as_text(TABLE)


@pytest.mark.parametrize("row", [1, 2])
def test_each_row_of_a_markdown_table_is_one_line_of_as_many_cells(row):
    lines = as_markdown(TABLE).splitlines()
    assert lines[1] == "| --- | --- |"
    assert lines[row + 1].replace("\\|", "").count("|") == 3
