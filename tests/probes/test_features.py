import pytest
import torch

from tests.probes.parts import StandIn
from vitmae.batch import Batch
from vitmae.errors import UserError
from vitmae.probes.features import Features, extract, extract_batches, stratified_split
from vitmae.randomness import generator


def batches(count=10, batch_size=4):
    images = torch.randint(0, 256, (count, 3, 4, 6), dtype=torch.uint8, generator=generator(3))
    labels = torch.arange(count) % 3
    for start in range(0, count, batch_size):
        part = slice(start, start + batch_size)
        yield Batch(images[part], labels[part], torch.zeros(len(labels[part]), dtype=torch.int64), 0)


def normalize(images):
    return images.float() / 255 - 0.5


def test_features_are_the_cls_token_and_the_mean_and_the_tokens_without_the_prefix():
    backbone = StandIn(registers=2).eval()
    features = extract(backbone, batches(), normalize, patches=True)
    latent = backbone(normalize(torch.cat([batch.images for batch in batches()])))
    torch.testing.assert_close(features.pooled["cls"], latent[:, 0])
    torch.testing.assert_close(features.pooled["avg"], latent[:, 3:].mean(1))
    torch.testing.assert_close(features.patches, latent[:, 3:])
    assert features.labels.tolist() == [i % 3 for i in range(10)]
    assert features.grid_size == (2, 3)


def test_features_do_not_depend_on_training_mode_nor_on_what_else_is_in_the_batch():
    backbone = StandIn()
    backbone.train()
    once = extract(backbone, batches(batch_size=4), normalize)
    again = extract(backbone.eval(), batches(batch_size=1), normalize)
    for pooling in ("cls", "avg"):
        torch.testing.assert_close(once.pooled[pooling], again.pooled[pooling])


def test_extraction_leaves_each_module_in_the_mode_it_was_in_also_after_an_error():
    backbone = StandIn().train()
    backbone.norm.eval()
    modes = [module.training for module in backbone.modules()]
    for _ in extract_batches(backbone, batches(), normalize):
        assert [module.training for module in backbone.modules()] == modes
    with pytest.raises(RuntimeError):
        extract(backbone, batches(), lambda images: images.float()[:, :2])
    assert [module.training for module in backbone.modules()] == modes
    assert backbone.norm.num_batches_tracked == 0


def test_features_can_train_a_head():
    features = extract(StandIn(), batches(), normalize)
    assert not features.pooled["avg"].requires_grad
    head = torch.nn.Linear(6, 3)
    torch.nn.functional.cross_entropy(head(features.pooled["avg"]), features.labels).backward()
    assert head.weight.grad.abs().sum() > 0


def test_averages_are_taken_in_float32():
    backbone = StandIn()
    exact = extract(backbone, batches(), normalize)
    low = extract(backbone, batches(), normalize, autocast=torch.bfloat16)
    assert low.pooled["avg"].dtype == torch.float32
    assert not torch.equal(low.pooled["avg"], exact.pooled["avg"])
    torch.testing.assert_close(low.pooled["avg"], exact.pooled["avg"], atol=0.1, rtol=0.05)
    assert not torch.equal(low.pooled["avg"], low.pooled["avg"].bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        inside = extract(backbone, batches(), normalize)
    assert torch.equal(inside.pooled["avg"], exact.pooled["avg"])


def test_a_backbone_without_cls_has_only_the_average():
    backbone = StandIn(has_cls=False, registers=1)
    assert set(extract(backbone, batches(), normalize).pooled) == {"avg"}


def test_no_images_and_diverged_weights_are_refused():
    backbone = StandIn()
    with pytest.raises(UserError, match="no images"):
        extract(backbone, [], normalize)
    backbone.projection.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        extract(backbone, batches(), normalize)


def test_a_probe_refuses_unlabelled_images():
    with pytest.raises(UserError, match="2 of 3 have no label"):
        _ = Features({}, torch.tensor([4, -1, -1])).num_classes
    assert Features({}, torch.tensor([4, 0])).num_classes == 5


def test_a_subset_takes_every_part_in_the_order_asked_for():
    features = extract(StandIn(), batches(), normalize, patches=True)
    ids = torch.tensor([7, 2])
    part = features.subset(ids)
    assert len(part) == 2
    assert torch.equal(part.pooled["cls"], features.pooled["cls"][ids])
    assert torch.equal(part.patches, features.patches[ids])
    assert torch.equal(part.labels, features.labels[ids])


def test_a_stratified_split_holds_out_the_fraction_of_every_class_and_depends_on_the_key_alone():
    labels = torch.tensor([0] * 40 + [1] * 10 + [2] * 2 + [3])
    rest, held_out = stratified_split(labels, 0.2, 5)
    assert torch.equal(torch.cat([rest, held_out]).sort().values, torch.arange(len(labels)))
    assert labels[held_out].bincount(minlength=4).tolist() == [8, 2, 1, 0]
    assert torch.equal(held_out, stratified_split(labels, 0.2, 5)[1])
    assert not torch.equal(held_out, stratified_split(labels, 0.2, 6)[1])


def test_classes_of_one_size_are_split_at_different_places():
    _, held_out = stratified_split(torch.arange(300) // 100, 0.2, 5)
    places = (held_out % 100).view(3, 20)
    assert len(places.unique(dim=0)) == 3
