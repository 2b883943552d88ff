"""A resumed run has the batches of a run without a stop, whenever and however it was stopped."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.data.builders import Tensors, write_classes
from vitmae.data.datamodule import ImageData
from vitmae.data.sources.folder import Folder
from vitmae.errors import UserError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`",  # resumed runs here save nothing
    "ignore:The dirpath has changed",  # or elsewhere
    "ignore:`isinstance.treespec, LeafSpec.`",  # between Lightning and torch
)

EPOCHS = 3
BATCHES = 5  # an epoch of 22 images in batches of 4


class Recorder(LightningModule):
    """Remembers the keys of the batches that it was trained on, and dies after some of them."""

    def __init__(self, dies_in=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.dies_in = [], dies_in

    def training_step(self, batch, index):
        if self.dies_in is not None and self.global_step >= self.dies_in:
            raise KeyboardInterrupt
        self.seen.append((batch.key, *batch.keys.tolist()))
        return self.weight * batch.images.float().mean()

    def validation_step(self, batch, index):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def train(data, folder, *, dies_in=None, ckpt=None, callbacks=(), **settings):
    module = Recorder(dies_in)
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": EPOCHS,
            "logger": False,
            "enable_progress_bar": False,
            "callbacks": [*callbacks],
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": folder,
            "enable_checkpointing": bool(callbacks),
            "barebones": False,
        }
        | settings
    )
    with suppress(SystemExit):  # what Lightning makes of a KeyboardInterrupt
        trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return module.seen


def every_step(folder):
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def memory(num_workers=0):
    return ImageData(Tensors(22), img_size=8, in_chans=1, batch_size=4, crop="pad", num_workers=num_workers)


def test_a_run_sees_every_epoch_once(tmp_path):
    seen = train(memory(), tmp_path)
    assert len(seen) == EPOCHS * BATCHES
    assert len(set(seen)) == len(seen)
    loader = memory()
    loader.prepare()
    batches = loader.train_dataloader()
    assert seen == [(batch.key, *batch.keys.tolist()) for _ in range(EPOCHS) for batch in batches]


@pytest.mark.parametrize("step", range(1, EPOCHS * BATCHES))
def test_a_run_goes_on_from_any_step(tmp_path_factory, whole_run, step):
    whole, checkpoints = whole_run
    assert train(memory(), tmp_path_factory.mktemp("run"), ckpt=checkpoints / f"step={step}.ckpt") == whole[step:]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return train(memory(), folder, callbacks=[every_step(folder)]), folder


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_another_number_of_workers_goes_on_with_the_same_batches(tmp_path, before, after):
    folder = write_classes(tmp_path / "photos", {"cat": 12, "dog": 12}, height=150, width=200)

    def files(num_workers):
        return ImageData(
            Folder(),
            path=str(folder),
            img_size=16,
            in_chans=3,
            batch_size=4,
            crop="random_resized",
            num_workers=num_workers,
        )

    whole = train(files(before), tmp_path, callbacks=[every_step(tmp_path / "run")], max_epochs=2)
    assert train(files(after), tmp_path, ckpt=tmp_path / "run" / "step=3.ckpt", max_epochs=2) == whole[3:]


@pytest.mark.parametrize("steps", [1, 3, 5, 7])
def test_a_run_that_died_goes_on_from_its_last_checkpoint(tmp_path, whole_run, steps):
    died = train(memory(), tmp_path, dies_in=steps, callbacks=[every_step(tmp_path)])
    assert died == whole_run[0][:steps]
    assert died + train(memory(), tmp_path, ckpt=tmp_path / f"step={steps}.ckpt") == whole_run[0]


def test_a_run_that_died_and_saved_itself_in_a_step_repeats_that_step(tmp_path, whole_run):
    died = train(
        memory(), tmp_path, dies_in=7, callbacks=[ModelCheckpoint(tmp_path, filename="died", save_on_exception=True)]
    )
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert saved
    assert died + train(memory(), tmp_path, ckpt=saved[0]) == whole_run[0]


def test_a_checkpoint_of_the_end_of_an_epoch_goes_on_with_the_next(tmp_path, whole_run):
    end = ModelCheckpoint(tmp_path, filename="end", every_n_epochs=2, save_on_train_epoch_end=True)
    train(memory(), tmp_path, callbacks=[end], max_epochs=2)
    assert train(memory(), tmp_path, ckpt=tmp_path / "end.ckpt") == whole_run[0][2 * BATCHES :]


def test_a_checkpoint_of_a_validation_in_mid_epoch_goes_on_after_it(tmp_path, whole_run):
    validated = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, save_on_train_epoch_end=False)
    settings = {"val_check_interval": 2}
    train(memory(), tmp_path, callbacks=[validated], **settings)
    assert train(memory(), tmp_path, ckpt=tmp_path / "step=7.ckpt", **settings) == whole_run[0][7:]


def test_a_resumed_run_is_resumed_again(tmp_path, whole_run):
    whole, checkpoints = whole_run
    train(memory(), tmp_path, ckpt=checkpoints / "step=3.ckpt", callbacks=[every_step(tmp_path)])
    assert train(memory(), tmp_path, ckpt=tmp_path / "step=8.ckpt") == whole[8:]


def test_accumulation_and_shortened_epochs_go_on_exactly(tmp_path):
    settings = {"accumulate_grad_batches": 2, "limit_train_batches": 4}
    whole = train(memory(), tmp_path, callbacks=[every_step(tmp_path)], **settings)
    assert len(whole) == EPOCHS * 4
    assert train(memory(), tmp_path, ckpt=tmp_path / "step=3.ckpt", **settings) == whole[6:]


# -- ranks -----------------------------------------------------------------------------------------------------------


def on_rank(rank, world, **settings):
    data = ImageData(**{"source": Tensors(22), "img_size": 8, "in_chans": 1, "crop": "pad", "hflip": True} | settings)
    data.prepare()
    progress = SimpleNamespace(total=SimpleNamespace(completed=0), current=SimpleNamespace(completed=0))
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        num_training_batches=5,
        num_devices=1,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )
    return data


def test_two_ranks_train_on_what_one_process_with_twice_the_batch_trains_on():
    one = on_rank(0, 1, batch_size=8).train_dataloader()
    ranks = [on_rank(rank, 2, batch_size=4).train_dataloader() for rank in range(2)]
    for whole, *halves in zip(one, *ranks, strict=True):
        pixels = {key: image for half in halves for key, image in zip(half.keys.tolist(), half.images, strict=True)}
        assert pixels.keys() == set(whole.keys.tolist())
        assert all(
            torch.equal(pixels[key], image) for key, image in zip(whole.keys.tolist(), whole.images, strict=True)
        )
        assert len({whole.key, *(half.key for half in halves)}) >= 2


def test_two_ranks_never_share_a_key():
    ours, theirs = (on_rank(rank, 2, batch_size=4).train_dataloader() for rank in range(2))
    assert not {b.key for b in ours} & {b.key for b in theirs}
    assert not {k for b in ours for k in b.keys.tolist()} & {k for b in theirs for k in b.keys.tolist()}


def test_two_ranks_validate_on_every_image_once():
    halves = [on_rank(rank, 2, batch_size=4) for rank in range(2)]
    keys = [key for half in halves for batch in half.val_dataloader() for key in batch.keys.tolist()]
    one = [key for batch in on_rank(0, 1, batch_size=4).val_dataloader() for key in batch.keys.tolist()]
    assert sorted(keys) == sorted(one)
    assert len(set(one)) == 11


def test_every_rank_probes_all_images():
    for rank in range(2):
        _, val = on_rank(rank, 2, batch_size=4).probe_dataloaders()
        assert sum(len(batch.images) for batch in val) == 11


def test_batches_of_all_ranks_that_need_more_images_than_there_are_get_one_line():
    with pytest.raises(UserError, match=r"data\.batch_size=12 on 2 processes"):
        on_rank(0, 2, batch_size=12).train_dataloader()
