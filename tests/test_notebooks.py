"""The notebooks run from their first cell to their last, in a kernel of their own, and are kept without their outputs."""

from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

from vitmae import train

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
PICTURES = {"mae_demo": 8, "what_vit_learns": 4}
a_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@a_notebook
def test_a_notebook_is_valid_compiles_and_is_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        compile(TransformerManager().transform_cell(cell.source), path.name, "exec")
    assert not any(cell.outputs or cell.execution_count for cell in code)


def pictures(path, folder):
    """How many pictures a notebook shows that is executed in a folder; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
@a_notebook
def test_a_notebook_trains_a_model_by_itself_and_shows_its_pictures(path, tmp_path, monkeypatch):
    monkeypatch.setenv("VITMAE_EPOCHS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert pictures(path, tmp_path) == PICTURES[path.stem]


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory):
    """A run on coloured rectangles."""
    run = tmp_path_factory.mktemp("runs") / "mae"
    assert (
        train.main(
            [
                "model=mae",
                "data=shapes",
                "data.img_size=[16,32]",
                "data.source.num_train=64",
                "data.source.num_val=16",
                "data.batch_size=32",
                "backbone=vit_pico",
                "backbone.patch_size=4",
                "backbone.depth=2",
                "model.decoder_depth=1",
                "trainer=cpu",
                "trainer.max_epochs=1",
                "logger=none",
                "probe.images=16",
                f"hydra.run.dir={run}",
            ]
        )
        == 0
    )
    return run


@pytest.mark.slow
@a_notebook
def test_a_notebook_shows_a_run_that_it_is_given(path, rectangles, tmp_path, monkeypatch):
    monkeypatch.setenv("VITMAE_RUN", str(rectangles))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert pictures(path, tmp_path) == PICTURES[path.stem]
