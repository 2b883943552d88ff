import pytest
import torch

from tests.trained.parts import image_folder
from vitmae.errors import UserError
from vitmae.trained.images import FolderImages, Preprocessing

PREPROCESS = Preprocessing((16, 24), 3, 1.0)


def shown(folder, batch_size=3, workers=0, **settings):
    return list(folder.batches(batch_size, workers, **settings))


def test_a_folders_images_come_in_order_each_once(tmp_path):
    folder = FolderImages(str(image_folder(tmp_path)), PREPROCESS, skip_unreadable=False)
    batches = shown(folder)
    assert [batch.numbers for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    for batch in batches:
        for number, image in zip(batch.numbers, batch.images, strict=True):
            assert torch.equal(image, PREPROCESS(folder.name(number), ""))
    assert [folder.name(number)[-9:] for number in (0, 9)] == ["a/000.png", "b/009.png"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single core
def test_workers_and_the_beginning_change_no_batch(tmp_path):
    folder = FolderImages(str(image_folder(tmp_path)), PREPROCESS, skip_unreadable=False)
    alone, helped, later = shown(folder), shown(folder, workers=2), shown(folder, first=6)
    for mine, theirs in ((alone, helped), (alone[2:], later)):
        assert [batch.numbers for batch in mine] == [batch.numbers for batch in theirs]
        assert all(torch.equal(a.images, b.images) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_or_left_out(tmp_path, workers):
    images = str(image_folder(tmp_path, broken=(4, 9)))
    strict, lenient = (FolderImages(images, PREPROCESS, skip_unreadable=skip) for skip in (False, True))
    with pytest.raises(UserError, match=r"a/004.png cannot be read .*on_error=skip") as error:
        shown(strict, workers=workers)
    assert "\n" not in str(error.value)
    batches = shown(lenient, workers=workers)
    assert [batch.numbers for batch in batches] == [[0, 1, 2], [3, 5], [6, 7, 8], []]
    assert batches[3].images.shape == (0, 3, 16, 24)
    assert "004.png" in batches[1].unreadable[0]
    assert "009.png" in batches[3].unreadable[0]


def test_images_are_a_folder_a_glob_a_list_or_one_file(tmp_path):
    image_folder(tmp_path / "photos", count=4)
    (tmp_path / "list.txt").write_text("photos/a/001.png\nphotos/b/002.png\n")
    counts = {"photos": 4, "photos/a/*.png": 2, "list.txt": 2, "photos/a/000.png": 1}
    for place, count in counts.items():
        assert len(FolderImages(str(tmp_path / place), PREPROCESS, skip_unreadable=False)) == count
    for place, reason in (("nowhere", "images=.*nowhere does not exist"), ("*.jpg", "images=.* matches no image")):
        with pytest.raises(UserError, match=reason):
            FolderImages(str(tmp_path / place), PREPROCESS, skip_unreadable=False)
