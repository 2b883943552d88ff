import pyarrow.parquet as pq
import pytest
import torch

from tests.trained.parts import image_folder, saved_run
from vitmae.errors import UserError
from vitmae.trained import embed_folder as embedding
from vitmae.trained.embed_folder import embed_folder
from vitmae.trained.images import FolderImages
from vitmae.trained.model import open_model


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A run, a folder of images, and chunks of four images."""
    saved_run(tmp_path / "run")
    image_folder(tmp_path / "photos")
    monkeypatch.setattr(embedding, "_CHUNK", 4)
    return tmp_path


def embed(place, name="out.parquet", killed_after=None, skip=False, precision="32-true", **settings):
    """Embed the folder; optionally the process dies while it encodes a batch."""
    model = open_model(place / "run", "cpu", precision)
    encode, calls = model.encode_batch, []

    def until_killed(images, pooling=None):
        calls.append(len(images))
        if killed_after is not None and len(calls) > killed_after:
            raise KeyboardInterrupt
        return encode(images, pooling)

    model.encode_batch = until_killed
    folder = FolderImages(str(place / "photos"), model.preprocess, skip_unreadable=skip)
    settings = {"pooling": None, "batch_size": 2, "num_workers": 0} | settings
    return embed_folder(model, folder, place / name, **settings)


def test_every_image_has_its_path_and_its_vector(place):
    done = embed(place)
    table = pq.read_table(place / "out.parquet")
    assert (done.count, done.width, done.resumed) == (10, 32, 0)
    paths = table["path"].to_pylist()
    assert paths == sorted(str(path) for path in (place / "photos").glob("*/*.png"))
    wanted = open_model(place / "run", "cpu", "32-true").encode(paths)
    assert torch.allclose(torch.tensor(table["vector"].to_pylist()), wanted, atol=1e-6)
    assert not (place / "out.parquet.parts").exists()


@pytest.mark.parametrize("killed_after", [0, 1, 2, 4])
def test_a_table_that_was_begun_is_finished_with_the_same_bytes(place, killed_after):
    embed(place, "whole.parquet")
    with pytest.raises(KeyboardInterrupt):
        embed(place, killed_after=killed_after)
    assert not (place / "out.parquet").exists()
    done = embed(place)
    assert done.resumed == 4 * (killed_after // 2)
    assert (place / "out.parquet").read_bytes() == (place / "whole.parquet").read_bytes()


def test_a_kill_while_a_chunk_is_written_leaves_no_half_of_it(place):
    embed(place, "whole.parquet")
    with pytest.raises(KeyboardInterrupt):
        embed(place, killed_after=3)
    (place / "out.parquet.parts" / "00001.parquet.tmp123").write_bytes(b"half")
    embed(place)
    assert (place / "out.parquet").read_bytes() == (place / "whole.parquet").read_bytes()


@pytest.mark.parametrize("name", ["about.json", "00000.parquet"])
def test_a_damaged_beginning_is_named_and_not_resumed(place, name):
    with pytest.raises(KeyboardInterrupt):
        embed(place, killed_after=3)
    part = place / "out.parquet.parts" / name
    part.write_bytes(part.read_bytes()[:20])
    with pytest.raises(UserError, match=rf"{name} is damaged: remove"):
        embed(place)


def test_a_table_that_was_begun_otherwise_is_not_resumed(place):
    with pytest.raises(KeyboardInterrupt):
        embed(place, killed_after=3)
    for settings, what in (
        ({"batch_size": 4}, "batch_size"),
        ({"pooling": "cls"}, "pooling"),
        ({"skip": True}, "skip_unreadable"),
        ({"precision": "bf16-mixed"}, "precision"),
    ):
        with pytest.raises(UserError, match=f"begun with another {what}"):
            embed(place, **settings)
    image_folder(place / "photos" / "c", count=2)
    with pytest.raises(UserError, match="begun with another images"):
        embed(place)


def test_a_table_of_another_checkpoint_is_not_resumed(place):
    with pytest.raises(KeyboardInterrupt):
        embed(place, killed_after=3)
    saved_run(place / "run", seed=7)
    with pytest.raises(UserError, match="begun with another model"):
        embed(place)


def test_a_finished_table_is_not_written_again(place):
    first = embed(place)
    (place / "out.parquet.parts").mkdir()  # of a run that was killed after its last write
    before = (place / "out.parquet").stat().st_mtime_ns
    again = embed(place)
    assert (again.count, again.width, again.resumed) == (first.count, first.width, first.count)
    assert (place / "out.parquet").stat().st_mtime_ns == before
    assert not (place / "out.parquet.parts").exists()


def test_another_table_is_not_written_over(place):
    embed(place)
    saved_run(place / "run", seed=7)
    with pytest.raises(UserError, match="is there already"):
        embed(place)


def test_unreadable_images_have_no_row(place):
    image_folder(place / "photos", broken=(3, 8, 9))
    done = embed(place, skip=True)
    assert done.count == len(pq.read_table(place / "out.parquet")) == 7
    assert len(done.unreadable) == 3
    for path in (place / "photos").glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the images can be read"):
        embed(place, "none.parquet", skip=True)


def test_memory_is_that_of_one_chunk(place, monkeypatch):
    """No table that is read or written has more rows than a chunk."""
    rows = []
    write, read = pq.write_table, pq.read_table
    monkeypatch.setattr(pq, "write_table", lambda table, file: (rows.append(len(table)), write(table, file)))
    monkeypatch.setattr(pq, "read_table", lambda file: rows.append(0) or read(file))
    embed(place)
    assert max(rows) == 4
    assert sum(rows) == 10
