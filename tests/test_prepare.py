from PIL import Image

from tests.command_line import run_command
from vitmae.prepare import main


def test_a_folder_is_prepared_and_what_was_left_out_is_said(tmp_path, capsys):
    (tmp_path / "src").mkdir()
    for number in range(3):
        Image.new("RGB", (60, 40)).save(tmp_path / "src" / f"{number}.jpg")
    for number in range(12):
        (tmp_path / "src" / f"note{number:02d}.txt").write_text("not an image")
    done = run_command(main, f"src={tmp_path / 'src'}", f"dst={tmp_path / 'dst'}", "short_side=20", capsys=capsys)
    assert done.code == 0
    assert "12 left out, 3 shrunk" in done.out
    assert "note00.txt: no image" in done.out
    assert "and 2 more, see" in done.out
    with Image.open(tmp_path / "dst" / "0.jpg") as image:
        assert image.size == (30, 20)


def test_a_mistake_is_one_line(tmp_path, capsys):
    (tmp_path / "src").mkdir()
    for arguments, line in [
        ([f"src={tmp_path / 'src'}", f"dst={tmp_path / 'src' / 'small'}"], "must not contain each other"),
        ([f"src={tmp_path / 'src'}", "dst=x", "quality=0"], "quality=0"),
        ([f"src={tmp_path / 'src'}", "dst=x", "num_workers=0"], "num_workers"),
        (["src=x"], "dst must be given"),
    ]:
        done = run_command(main, *arguments, capsys=capsys)
        assert done.code == 2
        assert line in done.err
        assert len(done.err.splitlines()) == 1
