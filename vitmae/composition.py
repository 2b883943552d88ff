"""The overrides of a command line -> settings: splitting, the config groups and their choices, composing.

    ["model=vit", "data=digits"] -> {"model": {...}, "data": {...}, ...}

`command.py` then calls a function with the settings.
"""

import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from vitmae.config import config_dir, did_you_mean, resolved, setting_keys
from vitmae.errors import UserError


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(flags with their values, overrides) of a command line."""
    is_override = [("=" in argument and argument[0] != "-") or argument[:1] == "~" for argument in arguments]
    flags = [argument for argument, override in zip(arguments, is_override, strict=True) if not override]
    return flags, [argument for argument, override in zip(arguments, is_override, strict=True) if override]


def quoted(argument: str) -> str:
    """An override, its value in quotes if that is a path with ``=`` or ``,``, which Hydra would split."""
    key, equals, value = argument.partition("=")
    is_plain = re.fullmatch(r"[\w./:+@%-]*", value) is not None
    if not equals or is_plain or value[0] in "'\"[{" or not Path(value).expanduser().exists():
        return argument
    return f"{key}='{value}'"


def trusted_names(overrides: Sequence[str]) -> list[str]:
    """The classes that `trust=` names, for files that are read before Hydra composes the settings.

    Raises:
        UserError: `trust=` is not a list of names.
    """
    given = [override for override in overrides if override.startswith("trust=")]
    names = OmegaConf.to_container(OmegaConf.from_dotlist(given[-1:]))
    trust = cast(dict[str, Any], names).get("trust") or []
    if not isinstance(trust, list) or not all(isinstance(name, str) for name in trust):
        raise UserError(f"{given[-1]}: must be a list of full names of classes, trust=[package.Class]")
    return trust


def config_folders() -> list[Path]:
    """The folders of YAML files: conf/, then the user's own folder if ``--config-dir`` names one."""
    for flag, following in pairwise([*sys.argv[1:], ""]):
        name, _, value = flag.partition("=")
        if name in ("--config-dir", "-cd"):
            return [config_dir(), Path(value or following).resolve()]
    return [config_dir()]


def group_choices(group: str) -> list[str]:
    """The choices of a config group, including those in the user's own folder."""
    return sorted({path.stem for folder in config_folders() for path in (folder / group).glob("[!_]*.yaml")})


def help_text(config_name: str) -> str:
    """What a command does and which choices it has; written without Hydra, which would first compose all settings."""
    config = OmegaConf.load(config_dir() / f"{config_name}.yaml")
    defaults = [entry for entry in config.defaults if isinstance(entry, DictConfig)]
    lines = []
    for entry in defaults:
        for group, default in cast(dict[str, str], entry).items():
            choices = ", ".join(f"[{name}]" if name == default else name for name in group_choices(group))
            lines.append(f"  {group:<10} {choices}")
    return Template(config.hydra.help.template).substitute(GROUPS="\n".join(lines))


def compose(overrides: Sequence[str], config_name: str = "config") -> dict[str, Any]:
    """The settings that overrides stand for, without `name` and `choices`, which only a run knows.

    Raises:
        UserError: an override is wrong.
    """
    try:
        config = _compose(overrides, config_name)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, config_name, overrides)) from error
    with open_dict(config):
        for key in {"name", "choices"} & config.keys():
            del config[key]
    return resolved(config)


def store_settings(name: str, settings: dict[str, Any]) -> None:
    """Let Hydra find saved settings under a config name; the section `hydra` is that of conf/config.yaml."""
    section = OmegaConf.load(config_dir() / "config.yaml").hydra
    store_node(name, OmegaConf.create({**settings, "hydra": section}))


def store_node(name: str, node: DictConfig) -> None:
    """Let Hydra find a config under a name that has no file, such as a command's config with one node filled in."""
    ConfigStore.instance().store(name=name, node=node)


def explain(error: Exception, config_name: str, overrides: Sequence[str]) -> str:
    """The message of Hydra or OmegaConf in one line, with the nearest name that exists."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.removesuffix(".yaml").rpartition("/")
        options = [option for option in error.options if not option.startswith("_")]
        near = did_you_mean(f"{group}={choice}", [f"{group}={option}" for option in options])
        return f"unknown choice {group}={choice}{near} (the choices are {', '.join(options)})"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: write key=value, and special characters as key=\"'value'\""
    if unknown := re.match(r"Could not (?:override|delete from config\.) '([^']+)'", str(error)):
        return f"unknown setting {unknown[1]}{did_you_mean(unknown[1], _known_keys(config_name, overrides))}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    return "; ".join(line.strip() for line in str(cause).splitlines() if line.strip())


def _compose(overrides: Sequence[str], config_name: str) -> DictConfig:
    """Compose with the folders of this command, whether or not Hydra is already running."""
    folders = ",".join(f"'file://{folder}'" for folder in config_folders()[1:])
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose(config_name, overrides=[*overrides, f"hydra.searchpath=[{folders}]"])


def _known_keys(config_name: str, overrides: Sequence[str]) -> list[str]:
    """The keys of all settings, of the groups' choices that the overrides name."""
    groups = {path.name for folder in config_folders() for path in folder.iterdir() if path.is_dir()}
    chosen = [override for override in overrides if override.partition("=")[0] in groups]
    try:
        config = _compose(chosen, config_name)
    except HydraException:  # such as a choice of a sweep, model=mae,vit
        config = _compose([], config_name)
    return list(setting_keys(cast(dict[str, Any], OmegaConf.to_container(config))))
