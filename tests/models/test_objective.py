"""Laws that every objective in `vitmae/models` obeys, over every kind of backbone."""

import pytest
import torch

from tests.models.parts import OBJECTIVES, batch, objective, tiny_backbone
from vitmae.backbones.timm_vit import TimmViT
from vitmae.errors import UserError
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
