"""Laws that every objective in `vitmae/models` obeys, over every kind of backbone."""

import pkgutil
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from tests.models.parts import OBJECTIVES, batch, objective, tiny_backbone
from vitmae import models
from vitmae.backbones.timm_vit import TimmViT
from vitmae.errors import UserError
from vitmae.models.objective import Objective, training_flops
from vitmae.models.protocols import Classifies, DrawsPanel, HasBaselines, Reconstructs, declared, declares
from vitmae.models.supervised import Supervised

BACKBONES = {
    "rectangle": tiny_backbone,
    "grey": lambda: tiny_backbone(in_chans=1),
    "12 channels": lambda: tiny_backbone(in_chans=12),
    "registers": lambda: tiny_backbone("vit_base_patch14_reg4_dinov2", (28, 42), 14),
    "no CLS": lambda: tiny_backbone("vit_base_patch16_siglip_224"),
    "hybrid": lambda: TimmViT("vit_small_r26_s32_224", (64, 96), depth=1),
}


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("name", BACKBONES)
def test_every_trainable_parameter_gets_a_gradient(kind, name):
    settings = {}
    if kind == "vit":
        settings["pool"] = "avg" if name == "no CLS" else "cls"
    if kind == "masked_patch" and name == "12 channels":
        settings["target"] = "pixels"
    model = objective(kind, BACKBONES[name](), **settings)
    for parameter in model.parameters():  # a zero-initialised scale hides the branch behind it from the first gradient
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.measure(batch(model.backbone))["loss"].backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert idle == []


@pytest.mark.parametrize("pool", ["avg", "map"])
def test_every_trainable_parameter_gets_a_gradient_under_other_poolings(pool):
    model = objective("vit", pool=pool)
    torch.nn.init.normal_(model.head.weight)
    model.measure(batch(model.backbone))["loss"].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_normalising_is_undone_and_its_statistics_are_in_the_checkpoint(kind):
    model = objective(kind)
    images = batch(model.backbone).images
    assert torch.allclose(model.unnormalize(model.normalize(images)) * 255, images.float(), atol=1e-3)
    assert {"mean", "std"} <= set(model.state_dict())


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_held_out_values_are_deterministic_and_do_not_depend_on_the_batch_size(kind):
    model = objective(kind, tiny_backbone(drop_rate=0.2, drop_path_rate=0.2)).eval()
    if kind != "vit":
        model.learn_baselines([batch(model.backbone)])
    whole = batch(model.backbone, 8)
    parts = [type(whole)(*(value[i : i + 4] if torch.is_tensor(value) else value for value in whole)) for i in (0, 4)]
    values = [model.measure(part) for part in parts]
    for name, value in model.measure(whole).items():
        assert torch.isclose(value, (values[0][name] + values[1][name]) / 2, atol=1e-6), name


@pytest.mark.parametrize("kind", ["mae", "masked_patch"])
def test_masks_differ_between_samples_epochs_and_ranks_because_keys_do(kind):
    model = objective(kind)
    data = batch(model.backbone)
    same_image = data._replace(images=data.images[:1].expand(4, -1, -1, -1))
    losses = {
        model.measure(type(data)(*(v[i : i + 1] if torch.is_tensor(v) else v for v in same_image)))["loss"].item()
        for i in range(4)
    }
    assert len(losses) == 4


@pytest.mark.parametrize("settings", [{"norm_pix_loss": True}, {"norm_pix_loss": False}])
def test_mae_baselines_are_the_errors_of_constant_predictions(settings):
    model = objective("mae", **settings).double().eval()
    data = batch(model.backbone, 8)
    model.learn_baselines([data])
    values = model.measure(data)
    from vitmae.tokens.masking import draw_mask
    from vitmae.tokens.patches import patchify

    images = model.normalize(data.images).double()
    every = torch.arange(24).expand(8, -1)
    target, mask = model.target(images, every), draw_mask(data.keys, (4, 6), 0.75).mask
    mean_patch = target.mean((0, 1))
    assert torch.isclose(values["loss_mean_patch"], (target - mean_patch)[mask].square().mean())
    colour = torch.stack([t[~m].view(-1, 3).mean(0) for t, m in zip(target, mask, strict=True)])
    painted = colour[:, None].repeat(1, 24, 16)
    assert torch.isclose(values["loss_visible_mean"], (target - painted)[mask].square().mean())
    assert patchify(images, (4, 4)).shape == target.shape


def test_the_length_of_a_run_counts_steps_of_the_optimiser_and_images_of_all_processes(monkeypatch):
    model = objective("mae")
    attached = SimpleNamespace(
        estimated_stepping_batches=30,
        num_training_batches=5,
        accumulate_grad_batches=2,
        world_size=4,
        datamodule=SimpleNamespace(batch_size=16),
    )
    monkeypatch.setattr(type(model), "trainer", property(lambda model: attached))
    assert model.run_length() == (30, 3, 16 * 4 * 2)


def test_statistics_of_another_channel_count_are_refused():
    from vitmae.recipe import Recipe

    with pytest.raises(UserError, match="1 channels and the images 3"):
        Supervised(tiny_backbone(), Recipe(), [0.5], [0.5], num_classes=3)


def test_the_name_of_a_hook_is_an_attribute_and_parameters_and_modules_are_registered_as_ever():
    model = objective("mae")
    model._current_fx_name = "training_step"
    model.scale = torch.nn.Parameter(torch.ones(2))
    model.extra = torch.nn.Linear(2, 2)
    assert model._current_fx_name == "training_step"
    assert {"scale", "extra.weight"} <= dict(model.named_parameters()).keys()


def every_objective():
    for module in pkgutil.iter_modules(models.__path__, "vitmae.models."):
        import_module(module.name)
    found = [Objective]
    for cls in found:
        found += cls.__subclasses__()
    return [cls for cls in found[1:] if cls.__module__.startswith("vitmae.")]


def test_every_objective_of_the_package_is_tested_here():
    assert set(every_objective()) == set(OBJECTIVES.values())


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_an_objective_describes_itself(kind):
    model, cls = objective(kind), OBJECTIVES[kind]
    assert cls.title
    assert cls.paper.startswith("https://")
    assert cls.published_as in ("vit_mae", "vit_classifier", None)
    assert isinstance(cls.needs_labels, bool)
    assert cls.monitor[1] in ("min", "max")
    assert model.predicts
    assert "\n" not in model.predicts
    rows = model.describe()
    assert rows
    assert all(isinstance(text, str) and text for row in rows.items() for text in row)
    assert model.macs() > 0
    assert training_flops(model) == 6 * model.macs()
    assert cls.needs_labels == declares(cls, Classifies)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_an_objective_does_what_it_declares(kind):
    model, cls = objective(kind).eval(), OBJECTIVES[kind]
    data = batch(model.backbone)
    images, num_patches = model.normalize(data.images), model.backbone.num_patches
    assert [declares(cls, protocol) for protocol in (DrawsPanel, Reconstructs, HasBaselines, Classifies)] == {
        "mae": [True, True, True, False],
        "masked_patch": [True, False, True, False],
        "vit": [False, False, False, True],
    }[kind]
    if learner := declared(model, HasBaselines):
        learner.learn_baselines([data])
        assert {"loss_mean_patch", "loss_visible_mean"} <= model.measure(data).keys()
    if artist := declared(model, DrawsPanel):
        assert all(picture.shape == data.images.shape for picture in artist.panel(data)[:4])
    if classifier := declared(model, Classifies):
        with torch.no_grad():
            assert classifier.pooled(model.backbone(images)).shape == (4, model.backbone.embed_dim)
            assert classifier(images).shape == (4, classifier.num_classes)
    if reconstructor := declared(model, Reconstructs):
        own, other = reconstructor.draw_mask(data.keys), reconstructor.draw_mask(data.keys, 0.5, "block")
        assert own.mask.sum(1).tolist() == [model.num_hidden] * 4
        assert other.mask.sum(1).tolist() == [num_patches // 2] * 4
        with torch.no_grad():
            errors = reconstructor.errors(images, other)
            assert torch.isclose(errors.nanmean(), model.loss(images, other))
        assert torch.equal(errors.isnan(), ~other.mask)
        assert torch.equal(reconstructor.panel(data, own).pasted, reconstructor.panel(data).pasted)


def test_an_objective_that_leaves_out_a_part_of_its_description_cannot_be_built():
    class Silent(Objective):
        def measure(self, batch):
            return {}

    with pytest.raises(TypeError, match=r"describe.*macs.*predicts"):
        Silent(tiny_backbone(), None, [0.5] * 3, [0.5] * 3)


def test_a_method_of_the_same_name_declares_nothing():
    class Chance:
        num_classes, pool = 3, "cls"

        def pooled(self, latent):
            return latent

        def forward(self, images):
            return images

    assert declared(Chance(), Classifies) is None
    assert not declares(Chance, Classifies)
