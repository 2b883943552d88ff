"""The train command in processes of its own: two ranks on the processor, in the test's own directory."""

from vitmae.config import config_dir

TWO_RANKS = (
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "trainer.precision=32-true",
    "trainer.num_sanity_val_steps=0",
    "backbone.embed_dim=16",
    "backbone.depth=1",
    "backbone.num_heads=2",
    "probe.images=50",
    "panel.images=1",
)
"""Words of `vitmae.train` for a small model."""


def work_in(folder, monkeypatch):
    """Processes that the test starts work in the folder, with one thread each and without a network."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(config_dir().parent))
    monkeypatch.setenv("WANDB_MODE", "offline")
