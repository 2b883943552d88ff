import pytest

from benchmarks import training_parity
from benchmarks.parity import LIMIT, Case, compare, page

SMALL = (
    Case("transformers", "ViTMAE Ti/8", "vit_tiny_patch16_224", (32, 32), 1, 8, norm_pix_loss=True),
    Case("timm", "ViT Ti/16", "vit_tiny_patch16_224", (32, 48), 4),
)


def test_the_table_has_every_stage_and_float64_is_within_its_limit():
    results = {case: compare(case) for case in SMALL}
    for by_precision in results.values():
        single, double = (max(differences.values()) for differences in by_precision.values())
        assert double < LIMIT
        assert single < 1e-4
    stages = next(iter(results[SMALL[0]].values()))
    assert list(stages) == [
        "tokens",
        *(f"block {i}" for i in range(1, 13)),
        *(f"decoder block {i}" for i in range(1, 5)),
        "latent",
        "prediction",
        "loss",
    ]
    text = page(results)
    assert "| timm | ViT Ti/16 | 32x48 | 4 |" in text
    assert text.count("| transformers | ViTMAE Ti/8 |") == 2


def test_a_difference_shows(monkeypatch):
    import benchmarks.parity as parity

    monkeypatch.setattr(parity, "load_weights", lambda *args, **settings: None)
    differences = compare(SMALL[1])
    assert all(max(by.values()) > 1e-2 for by in differences.values())


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_five_steps_of_training_are_those_of_the_published_code_in_every_weight(norm_pix_loss):
    steps = training_parity.five_steps(norm_pix_loss)
    assert len(steps) == 5
    assert all(step.weights < LIMIT and step.loss < LIMIT for step in steps)


@pytest.mark.parametrize("setting", [{"decay_tokens": False}, {"betas": [0.9, 0.999]}, {"weight_decay": 0.04}])
def test_another_recipe_shows_in_the_weights(monkeypatch, setting):
    composed = training_parity.compose(["model=mae"])
    composed["model"]["optimizer"] |= setting
    monkeypatch.setattr(training_parity, "compose", lambda overrides: composed)
    assert training_parity.five_steps(True)[-1].weights > 1e-8
