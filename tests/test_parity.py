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
