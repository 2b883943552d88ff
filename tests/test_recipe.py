import math

import pytest
import torch
from omegaconf import OmegaConf
from timm.optim import param_groups_weight_decay
from torch import nn

from tests.conf_files import load_choice
from tests.models.parts import objective, tiny_backbone
from vitmae.backbones.timm_vit import TimmViT
from vitmae.composition import compose
from vitmae.config import build
from vitmae.errors import UserError
from vitmae.models.supervised import Supervised
from vitmae.recipe import Recipe, build_optimizer, build_schedule, cosine_factor, param_groups


def groups_of(model, recipe, peak_lr=1.0):
    return param_groups(model.named_parameters(), recipe, peak_lr, model.layer_of, model.backbone.depth + 1)


@pytest.mark.parametrize("kind", ["mae", "masked_patch", "vit"])
@pytest.mark.parametrize("decay_tokens", [False, True])
def test_matrices_are_decayed_and_positions_and_tokens_if_asked_for_biases_and_norms_never(kind, decay_tokens):
    settings = {"fixed_positions": False} if kind != "masked_patch" else {}
    model = objective(kind, tiny_backbone("vit_base_patch14_reg4_dinov2", (28, 28), 14), **settings)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = groups_of(model, Recipe(weight_decay=0.1, decay_tokens=decay_tokens))
    decayed = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    for name, parameter in model.named_parameters():
        special = any(part in name for part in ("pos_embed", "cls_token", "reg_token", "mask_token"))
        assert (name in decayed) is (parameter.ndim > 1 and (decay_tokens or not special)), name


@pytest.mark.parametrize("choice", ["mae", "masked_patch"])
def test_pre_training_decays_what_timms_rule_decays_as_in_the_published_code(choice):
    """Its groups are timm's of no exceptions: everything but vectors and biases."""
    model = objective(choice)
    recipe = build(OmegaConf.to_container(load_choice("model", choice).optimizer))
    theirs = param_groups_weight_decay(model, recipe.weight_decay)
    ours = groups_of(model, recipe)
    for group, twin in zip(ours, theirs, strict=True):
        assert group["weight_decay"] == twin["weight_decay"]
        assert {id(p) for p in group["params"]} == {id(p) for p in twin["params"]}


@pytest.mark.parametrize("overrides", [["model=vit"], ["experiment=finetune_mae"], ["experiment=finetune_vit"]])
def test_supervised_training_spares_positions_and_tokens(overrides):
    assert compose(overrides)["model"]["optimizer"]["decay_tokens"] is False


def test_the_query_of_attention_pooling_is_not_decayed():
    model = objective("vit", pool="map")
    plain = next(g for g in groups_of(model, Recipe(weight_decay=0.1)) if not g["weight_decay"])
    assert any(p is model.attn_pool.latent for p in plain["params"])


def test_each_trainable_parameter_is_in_exactly_one_group():
    model = objective("mae")
    for recipe in (Recipe(), Recipe(layer_decay=0.75)):
        found = [id(p) for group in groups_of(model, recipe) for p in group["params"]]
        assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_layer_decay_of_vit_b_is_the_papers_table():
    with torch.device("meta"):
        model = Supervised(TimmViT("vit_base_patch16_224", 224), Recipe(), [0.5] * 3, [0.5] * 3, num_classes=1000)
    rates = {}
    for group in groups_of(model, Recipe(layer_decay=0.65), peak_lr=2e-3):
        for parameter in group["params"]:
            rates[id(parameter)] = group["lr"]
    for name, parameter in model.named_parameters():
        inner = name.removeprefix("backbone.vit.")
        layer = 13
        if inner.startswith(("patch_embed", "cls_token", "pos_embed")):
            layer = 0
        elif inner.startswith("blocks."):
            layer = int(inner.split(".")[1]) + 1
        assert rates[id(parameter)] == pytest.approx(2e-3 * 0.65 ** (13 - layer)), name


def test_a_decayed_learning_rate_reaches_the_update():
    model = objective("vit")
    recipe = Recipe(name="momentum", layer_decay=0.5, weight_decay=0.0)
    optimizer = build_optimizer(groups_of(model, recipe, peak_lr=0.1), recipe)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = 0.1 * 0.5 ** (3 - model.layer_of(name))
        assert torch.allclose(before[name] - parameter, torch.tensor(expected), atol=1e-6), name


def test_the_schedule_rises_from_0_to_the_peak_and_falls_to_the_floor_in_every_group():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [
        {"params": [p], "lr": lr, "weight_decay": 0.0, "name": ""}
        for p, lr in zip(parameters, (1.0, 0.25), strict=True)
    ]
    recipe = Recipe(min_lr=0.1)
    optimizer = build_optimizer(groups, recipe)
    schedule = build_schedule(optimizer, recipe, peak_lr=1.0, warmup_steps=10, total_steps=110)
    rates = []
    for _ in range(111):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    rates = torch.tensor(rates)
    assert torch.allclose(rates[:, 1] * 4, rates[:, 0])
    assert rates[0, 0] == 0
    assert torch.allclose(rates[:11, 0], torch.arange(11) / 10)
    assert rates[10, 0] == rates[:, 0].max() == 1.0
    assert rates[60, 0].item() == pytest.approx(0.1 + 0.9 / 2)
    assert rates[110, 0].item() == pytest.approx(0.1)
    assert (rates[10:].diff(dim=0) <= 0).all()


@pytest.mark.parametrize("peak_lr", [0.5, 2.0])
def test_the_floor_is_a_rate_and_no_share_of_the_peak(peak_lr):
    recipe = Recipe(min_lr=0.1)
    group = {"params": [nn.Parameter(torch.zeros(1))], "lr": peak_lr, "weight_decay": 0.0, "name": ""}
    optimizer = build_optimizer([group], recipe)
    schedule = build_schedule(optimizer, recipe, peak_lr=peak_lr, warmup_steps=1, total_steps=5)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_the_cosine_is_half_a_cosine():
    for step in range(10, 111, 10):
        expected = 0.5 * (1 + math.cos(math.pi * (step - 10) / 100))
        assert cosine_factor(step, 10, 110, 0.0) == pytest.approx(expected)


def test_the_peak_is_the_base_rate_scaled_by_the_effective_batch():
    assert Recipe(base_lr=1.5e-4).peak_lr(4096) == pytest.approx(2.4e-3)


def test_warm_up_is_a_share_of_the_run_unless_given_and_may_not_outlast_it():
    assert Recipe().warmup_steps(1000, 10) == 50
    assert Recipe(warmup_epochs=2.5).warmup_steps(1000, 10) == 25
    with pytest.raises(UserError, match="warmup_epochs=100 is 1000 steps, but the whole run has 1000"):
        Recipe(warmup_epochs=100).warmup_steps(1000, 10)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars", "lamb", "muon", "lion"])
def test_timms_optimisers_take_the_groups_with_their_own_rates(name):
    model = objective("mae")
    recipe = Recipe(name=name, layer_decay=0.5)
    optimizer = build_optimizer(groups_of(model, recipe, 0.1), recipe)
    assert len({group["lr"] for group in optimizer.param_groups}) == 4


@pytest.mark.parametrize(
    ("settings", "words"), [({"name": "adamx"}, "must be an optimiser of timm"), ({"layer_decay": 0.0}, "layer_decay")]
)
def test_recipes_that_cannot_be_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        Recipe(**settings)


@pytest.mark.parametrize(("name", "settings"), [("sgd", {"betas": (0.9, 0.95)}), ("adamw", {"momentum": 0.9})])
def test_a_setting_the_optimiser_does_not_have_is_refused(name, settings):
    model, recipe = objective("mae"), Recipe(name=name, **settings)
    with pytest.raises(UserError, match=f"has no effect: {name} has no"):
        build_optimizer(groups_of(model, recipe), recipe)


def test_an_optimiser_that_loads_a_state_keeps_its_own_settings():
    def trained(**settings):
        weight = torch.nn.Parameter(torch.ones(2, 2))
        optimizer = build_optimizer([{"params": [weight], "lr": 1e-3, "weight_decay": 0.1}], Recipe(**settings))
        weight.grad = torch.ones(2, 2)
        optimizer.step()
        return weight, optimizer

    (_, saved), (weight, optimizer) = trained(betas=(0.8, 0.9)), trained(betas=(0.9, 0.95))
    saved.param_groups[0].update(lr=7.0, weight_decay=7.0)
    saved.state[saved.param_groups[0]["params"][0]]["exp_avg"].fill_(3.0)
    optimizer.load_state_dict(saved.state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-3, 0.1, (0.9, 0.95))
    assert (optimizer.state[weight]["exp_avg"] == 3).all()


def test_a_state_of_other_groups_is_refused():
    def optimizer(*counts):
        groups = [{"params": [torch.nn.Parameter(torch.ones(1)) for _ in range(count)], "lr": 1e-3} for count in counts]
        return build_optimizer(groups, Recipe())

    with pytest.raises(ValueError, match="parameter group"):
        optimizer(2, 1).load_state_dict(optimizer(1, 2).state_dict())
