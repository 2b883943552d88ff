"""A setting has one default, the same in YAML and in the constructor."""

import inspect

import pytest
from omegaconf import OmegaConf

from tests.conf_files import choices_of, load_choice
from vitmae.config import config_dir, locate

RECIPES = {  # values of a paper's recipe, of a set, or of one machine: they belong to the file
    "model.optimizer": {"base_lr", "weight_decay", "decay_tokens", "betas"},
    "data": {"crop", "crop_scale", "crop_ratio", "hflip", "stats", "val_fraction", "path", "num_workers"},
    "backbone": {"patch_size", "embed_dim", "depth", "num_heads"},
}


def nodes(name, node):
    if "_target_" in node:
        yield name, node
    for key, value in node.items():
        if isinstance(value, dict):
            yield from nodes(f"{name}.{key}", value)


def shipped():
    for group in ("model", "data", "backbone", "logger"):
        for choice in choices_of(group):
            settings = OmegaConf.to_container(load_choice(group, choice))
            settings = settings["data"] if group == "data" else settings
            yield from ((f"{group}/{choice}", *node) for node in nodes(group, settings))
    for command in ("config", "evaluate", "embed", "reconstruct", "export", "prepare", "replay"):
        settings = OmegaConf.to_container(OmegaConf.load(config_dir() / f"{command}.yaml"))
        settings.pop("hydra")
        yield from ((command, *node) for node in nodes(command, settings))


@pytest.mark.parametrize(("file", "name", "node"), [pytest.param(*each, id=":".join(each[:2])) for each in shipped()])
def test_a_value_in_yaml_is_the_default_of_the_constructor(file, name, node):
    parameters = inspect.signature(locate(node["_target_"])).parameters
    for key, value in node.items():
        default = parameters[key].default if key in parameters else inspect.Parameter.empty
        interpolated = isinstance(value, str) and value.startswith("${")
        if default is inspect.Parameter.empty or interpolated or value == "???" or isinstance(value, dict):
            continue
        if key not in RECIPES.get(name, ()):
            assert value == (list(default) if isinstance(default, tuple) else default), f"{file}: {name}.{key}"
