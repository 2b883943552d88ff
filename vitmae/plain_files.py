"""JSON and YAML files from anywhere -> mappings, lists, texts and numbers. Nothing that they say is followed."""

import json
import stat
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitmae.errors import UserError, first_line

_MOST_BYTES, _DEEPEST = 2**24, 20


def require_file(path: Path) -> None:
    """Refuse what is no ordinary file: to open a named pipe waits for ever, and a device never ends.

    Raises:
        UserError: there is no such file, or it is a folder, a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path and its permissions") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise UserError(f"{path} is {kind}: must be a file")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        UserError: the file does not exist, is damaged, or holds no object.
    """
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object; get it again")
    return content


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; an interpolation stays the text that it is.

    Raises:
        UserError: the file does not exist, is damaged, or has tags or aliases: a tag builds an object, and a few
            aliases of aliases fill the memory.
    """
    text = _text(path)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise UserError(f"{path} is refused: its values are more than {_DEEPEST} levels deep; get it again")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
                line = event.start_mark.line + 1
                raise UserError(f"{path} is refused: line {line} has a tag or an alias; write the plain value there")
            if depth == 0 and isinstance(event, yaml.ScalarEvent):
                raise UserError(f"{path} is damaged (it holds no mapping and no list): get it again")
        return OmegaConf.to_container(OmegaConf.create(text))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error


def _text(path: Path) -> str:
    require_file(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} is too large: must be at most {_MOST_BYTES >> 20} MiB; get it again")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({first_line(error)}): get it again")
