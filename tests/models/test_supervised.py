import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from tests.models.parts import batch, objective, tiny_backbone
from vitmae.backbones.backbone import Backbone
from vitmae.backbones.timm_vit import TimmViT
from vitmae.errors import UserError
from vitmae.models.supervised import topk_accuracy
from vitmae.recipe import Recipe, param_groups


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch14_reg4_dinov2"])
@pytest.mark.parametrize("pool", ["cls", "avg", "map"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_logits_are_those_of_timm_on_the_same_weights(name, pool, dtype, tolerance):
    patch = 14 if "14" in name else 16
    settings = {"img_size": (2 * patch, 3 * patch), "depth": 2}
    model = objective(
        "vit", tiny_backbone(name, patch_size=patch, embed_dim=None, num_heads=None, **settings), pool=pool
    )
    torch.nn.init.normal_(model.head.weight, std=0.02)
    twin = timm.create_model(
        name, num_classes=10, global_pool={"cls": "token"}.get(pool, pool), fc_norm=pool == "avg", **settings
    )
    state = {k.removeprefix("backbone.vit."): v for k, v in model.state_dict().items() if k not in ("mean", "std")}
    twin.load_state_dict(state)
    model, twin = model.to(dtype).eval(), twin.to(dtype).eval()
    images = model.normalize(batch(model.backbone).images).to(dtype)
    with torch.no_grad():
        assert (model(images) - twin(images)).abs().max() < tolerance


def test_the_head_starts_at_zero_so_the_first_loss_is_that_of_chance():
    model = objective("vit").eval()
    values = model.measure(batch(model.backbone))
    assert not model.head.weight.any()
    assert values["loss"].item() == pytest.approx(torch.tensor(10.0).log().item())


def test_the_deviation_of_the_heads_first_weights_is_the_one_asked_for():
    for std in (2e-5, 0.02):
        head = objective("vit", num_classes=1000, head_init_std=std).head
        assert head.weight.std().item() == pytest.approx(std, rel=0.05)
        assert not head.bias.any()


def test_first_weights_of_the_backbone_are_those_that_are_named():
    own, jax = objective("vit"), objective("vit", init="jax")
    assert own.backbone.vit.blocks[0].attn.proj.weight.std() < 0.03
    assert jax.backbone.vit.blocks[0].attn.proj.weight.std() > 0.15
    assert not jax.backbone.vit.cls_token.any()


def test_first_weights_that_a_backbone_does_not_have_are_refused(monkeypatch):
    monkeypatch.setattr(TimmViT, "init_jax", Backbone.init_jax)
    with pytest.raises(UserError, match=r"model\.init=jax: TimmViT has no such initialisation"):
        objective("vit", init="jax")


@pytest.mark.parametrize(
    ("pool", "own"), [("cls", {"head"}), ("avg", {"head", "fc_norm"}), ("map", {"head", "attn_pool"})]
)
def test_with_all_frozen_only_the_head_and_what_pools_are_trained(pool, own):
    model = objective("vit", tiny_backbone(drop_rate=0.5, drop_path_rate=0.5), pool=pool, freeze="all")
    nn.init.normal_(model.head.weight)
    assert {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad} == own
    data = batch(model.backbone)
    model.measure(data)["loss"].backward()
    assert {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None} == own
    images = model.normalize(data.images)
    latent = model.train().backbone(images)
    assert torch.equal(latent, model.eval().backbone(images))  # a linear probe's features are fixed


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_blocks_are_in_no_group_of_the_optimiser_and_the_head_keeps_the_full_rate(frozen):
    model, recipe = objective("vit", freeze=frozen, pool="avg"), Recipe(layer_decay=0.5)
    groups = param_groups(model.named_parameters(), recipe, 1.0, model.layer_of, 3)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        layer = model.layer_of(name)
        is_frozen = frozen > 0 and layer <= frozen
        assert rates.get(id(parameter)) == (None if is_frozen else 0.5 ** (3 - layer)), name
    assert rates[id(model.head.weight)] == 1.0


@pytest.mark.parametrize("pool", ["cls", "avg", "map"])
def test_pooling_reads_what_it_says(pool):
    model = objective("vit", pool=pool).eval()
    latent = torch.randn(2, 25, 32)
    changed = latent.clone()
    changed[:, 1:] += torch.randn(2, 24, 32)
    same = torch.equal(model.pooled(latent), model.pooled(changed))
    assert same is (pool == "cls")
    changed = latent.clone()
    changed[:, 0] += 1
    assert torch.equal(model.pooled(latent), model.pooled(changed)) is (pool != "cls")


def test_label_smoothing_reaches_the_loss_in_training_and_not_held_out():
    plain, smooth = objective("vit"), objective("vit", label_smoothing=0.2)
    for model in (plain, smooth):
        torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    data = batch(plain.backbone)
    assert plain.measure(data)["loss"] != smooth.measure(data)["loss"]
    assert plain.eval().measure(data)["loss"] == smooth.eval().measure(data)["loss"]
    logits = smooth(smooth.normalize(data.images))
    expected = F.cross_entropy(logits, data.labels, label_smoothing=0.2)
    assert torch.isclose(smooth.train().measure(data)["loss"], expected)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_changes_images_and_gives_targets_that_sum_to_one(kind):
    model = objective("vit", **{kind: 1.0})
    data = batch(model.backbone)
    images = model.normalize(data.images)
    torch.manual_seed(3)
    mixed, target = model.mix(images, data.labels)
    assert not torch.equal(mixed, images)
    assert target.shape == (4, 10)
    assert torch.allclose(target.sum(1), torch.ones(4))
    if kind == "mixup":
        share = target[0, data.labels[0]]
        assert torch.allclose(mixed, share * images + (1 - share) * images.roll(1, 0), atol=1e-5)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_mixed_images_is_the_cross_entropy_with_their_mixed_targets(kind, smoothing):
    model = objective("vit", **{kind: 1.0}, label_smoothing=smoothing)
    torch.nn.init.normal_(model.head.weight)
    data = batch(model.backbone)
    torch.manual_seed(3)
    images, target = model.mix(model.normalize(data.images), data.labels)
    assert (target.amax(1) < 1).all()
    target = (1 - smoothing) * target + smoothing / 10
    expected = -(target * model(images).log_softmax(1)).sum(1).mean()
    torch.manual_seed(3)
    assert torch.isclose(model.measure(data)["loss"], expected)


def test_with_both_mixes_each_batch_gets_one_of_them():
    model = objective("vit", mixup=0.8, cutmix=1.0)
    data = batch(model.backbone)
    images = model.normalize(data.images)
    pasted = 0
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, _ = model.mix(images, data.labels)
        pasted += bool(((mixed == images) | (mixed == images.roll(1, 0))).all())
    assert 3 < pasted < 17


def test_mixing_is_a_function_of_the_batchs_key():
    model = objective("vit", mixup=0.8, cutmix=1.0)
    torch.nn.init.normal_(model.head.weight)
    data = batch(model.backbone)
    losses = []
    for key in (1, 2, 1):
        torch.rand(5)
        losses.append(model.training_step(data._replace(key=key), 0).item())
    assert losses[0] == losses[2] != losses[1]


def test_topk_counts_a_label_among_the_k_likeliest():
    logits = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.1, 0.3]])
    assert topk_accuracy(logits, torch.tensor([2, 0]), 1) == 0.5
    assert topk_accuracy(logits, torch.tensor([2, 1]), 2) == 0.5
    assert topk_accuracy(logits, torch.tensor([0, 1]), 5) == 1.0


def test_held_out_accuracies_are_among_the_likeliest_class_and_the_likeliest_five(monkeypatch):
    model = objective("vit").eval()
    places = torch.tensor([0, 3, 4, 5])  # of the right class in the order of the logits
    logits = torch.arange(10.0).flip(0).expand(4, 10)
    monkeypatch.setattr(model, "forward", lambda images: logits)
    values = model.measure(batch(model.backbone)._replace(labels=places))
    assert (values["acc1"], values["acc5"]) == (0.25, 0.75)


def test_no_labels_and_no_cls_token_are_refused():
    with pytest.raises(UserError, match="needs labels"):
        objective("vit", num_classes=None)
    with pytest.raises(UserError, match="no CLS token"):
        objective("vit", tiny_backbone("vit_base_patch16_siglip_224"))
