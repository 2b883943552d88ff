"""The overrides of a command line -> settings: splitting, the config groups and their choices, composing.

    ["model=vit", "data=digits"] -> {"model": {...}, "data": {...}, ...}

`command.py` then calls a function with the settings.
"""

import os
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
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from vitmae.config import config_dir, did_you_mean, resolved, setting_keys
from vitmae.errors import UserError
from vitmae.files import user_path
from vitmae.limits import Text, check_value

_SEVERAL = ("logger", "experiment")
"""Config groups of which several choices can be combined."""
_OF_THE_DIRECTORY = ("name", "runs", "hydra.run.dir")
"""Settings of the run's directory, which is made before settings are checked."""
SWEEP_FLAGS = {"-m", "--multirun"}
"""Hydra's flags for a sweep."""
_FLAGS = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun"),
)
_SHORT_FLAGS = ("-h", "-c", "-p", "-r", "-m", "-s", "-i")
"""Hydra's flags; a short one may have a second letter or its value behind it."""


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(flags with their values, overrides) of a command line."""
    is_override = [("=" in argument and argument[0] != "-") or argument[:1] == "~" for argument in arguments]
    flags = [argument for argument, override in zip(arguments, is_override, strict=True) if not override]
    return flags, [argument for argument, override in zip(arguments, is_override, strict=True) if override]


def check_flags(flags: Sequence[str]) -> None:
    """Refuse flags that no command has, as `--epochs`: newcomers write settings so.

    Raises:
        UserError: there is no such flag.
    """
    for flag in flags:
        name = flag.partition("=")[0]
        is_known = any(known.startswith(name) for known in _FLAGS) or name[:2] in _SHORT_FLAGS
        if flag.startswith("-") and not is_known:
            raise UserError(f"{name}: there is no such flag: a setting has no dashes: write key=value; see --help")


def value_of(key: str, overrides: Sequence[str]) -> str:
    """The last value that the command line gives a setting, as text; empty if it gives none."""
    values = [override.partition("=")[2] for override in overrides if override.startswith(f"{key}=")]
    return values[-1].strip("'\"") if values else ""


def quoted(argument: str) -> str:
    """An override, its value in quotes if that is a path with ``=``, ``,`` or ``&``, which Hydra would not read.

    A path may be new; the part of it with such a letter exists.
    """
    key, equals, value = argument.partition("=")
    if not equals or _is_plain(value) or value[0] in "'\"[{":
        return argument
    place = user_path(value)
    is_path = any(not _is_plain(str(part)) and os.path.lexists(part) for part in (place, *place.parents))
    return f"{key}='{value}'" if is_path else argument


def _is_plain(text: str) -> bool:
    """Whether Hydra reads a text as it is."""
    return re.fullmatch(r"[\w./:+@%-]*", text) is not None


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


def check_words(config_name: str, overrides: Sequence[str]) -> None:
    """Refuse words that Hydra would misread or report as a fault of its own, before it makes a run's directory.

    Args:
        config_name: the file whose config groups are meant.
        overrides: the words of a command line.

    Raises:
        UserError: a group's value is no name of a choice, a whole group is removed, or no directory can have the name.
        HydraException: a word cannot be read.
    """
    groups = _default_choices(config_name)
    if not groups:  # a command of one function; compare has its own grammar
        return
    parser = OverridesParser.create()
    for word in overrides:
        try:
            override = parser.parse_override(word)
        except (HydraException, ValueError) as error:  # ValueError: a number of thousands of digits
            shown = word if len(word) <= 80 else f"{word[:80]}…"
            raise UserError(
                f"cannot read {shown!r}: write key=value, and special characters as key=\"'value'\""
            ) from error
        key = override.key_or_group
        if not key:
            raise UserError(f"cannot read {word!r}: write key=value")
        if override.is_sweep_override():
            continue
        if override.is_delete() and "." not in key:
            raise UserError(f"{word}: {key} cannot be left out: set it to another value")
        if key in groups:
            value = override.value()
            names = value if isinstance(value, list) and value and key in _SEVERAL else [value]
            if not all(isinstance(name, str | QuotedString) for name in names):
                what = "a choice, or a list of choices" if key in _SEVERAL else "one choice"
                raise UserError(f"{word}: must be {what} ({', '.join(group_choices(key))}), or leave it out")
        elif key in _OF_THE_DIRECTORY:
            text = override.get_value_element_as_str().strip("'\"")
            check_value(key, text, Text)
            if key == "name" and "/" in text:
                raise UserError(f"{word}: must be the name of a directory, without /; runs= sets the folder")


def _default_choices(config_name: str) -> dict[str, str | None]:
    """The config groups of a file, each with its default choice."""
    file = config_dir() / f"{config_name}.yaml"
    if not file.exists():  # settings that a command has stored under a name
        return {}
    entries = cast(DictConfig, OmegaConf.load(file)).get("defaults", [])
    pairs = [pair for entry in entries if isinstance(entry, DictConfig) for pair in entry.items()]
    return {str(group): choice for group, choice in pairs if not str(group).startswith("override ")}


def help_text(config_name: str) -> str:
    """What a command does and which choices it has; written without Hydra, which would first compose all settings."""
    config = OmegaConf.load(config_dir() / f"{config_name}.yaml")
    lines = []
    for group, default in _default_choices(config_name).items():
        choices = ", ".join(f"[{name}]" if name == default else name for name in group_choices(group))
        lines.append(f"  {group:<10} {choices}")
    return Template(config.hydra.help.template).substitute(GROUPS="\n".join(lines))


def compose(overrides: Sequence[str], config_name: str = "config") -> dict[str, Any]:
    """The settings that overrides stand for, without `name` and `choices`, which only a run knows.

    Raises:
        UserError: an override is wrong.
    """
    try:
        check_words(config_name, overrides)
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


def store_evaluation(overrides: Sequence[str], trained: dict[str, Any]) -> list[str]:
    """Let Hydra find conf/evaluate.yaml with `data` filled in, under the name "evaluation".

    Args:
        overrides: of `vitmae.evaluate`; ``data=<choice>`` is another set, at the size and with the statistics of the
            training.
        trained: the `data` settings of the training, see `vitmae.evaluation.data_settings.of_run`.

    Returns:
        The overrides that are left to Hydra.

    Raises:
        UserError: the other set's settings are wrong.
    """
    from vitmae.evaluation.data_settings import seen_as

    node: Any = OmegaConf.load(config_dir() / "evaluate.yaml")
    node.data = trained
    if any(word.startswith("data=") for word in overrides):
        words = [word for word in overrides if word.startswith("data")]
        node.data = seen_as(compose([*words, f"seed={trained['seed']}"])["data"], trained)
    store_node("evaluation", node)
    return [word for word in overrides if not word.startswith("data=")]


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
    return _cause(error)


def mistake_behind(error: Exception) -> UserError | None:
    """The user's mistake that a resolver found, behind an error of Hydra; None if there is none."""
    origin: BaseException | None = error
    while origin is not None and not isinstance(origin, UserError):
        origin = origin.__cause__ or origin.__context__
    return origin


def _cause(error: Exception) -> str:
    """What lies behind an error of Hydra: a mistake that a resolver found, or a message of OmegaConf."""
    if (mistake := mistake_behind(error)) is not None:
        return str(mistake)
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = "; ".join(line.strip() for line in str(cause).splitlines() if line.strip())
    if text.startswith("Ambiguous value for argument"):
        word = text.split("'")[1]
        return f"{word}: a comma makes a sweep: add -m, or write a list as [a,b], or a text as key=\"'a,b'\""
    if text.startswith("Cannot merge") and isinstance(cause, OmegaConfBaseException):
        return f"{cause.full_key} must be a mapping: set its settings one by one, {cause.full_key}.<name>=<value>"
    return text


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
