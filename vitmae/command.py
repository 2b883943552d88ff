"""What all commands share: a function of settings becomes a command with Hydra's grammar and a clear exit code.

A mistake of the user ends the command with one line on stderr and exit code 2, whether Hydra, the check of the
settings or a constructor finds it. A fault of this project prints its traceback and ends with 1. An interrupted run
ends with 75.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from vitmae.allocator import use_large_pages
from vitmae.composition import explain, help_text, quoted, split_arguments
from vitmae.config import build, check_settings, config_dir, resolved
from vitmae.errors import UserError
from vitmae.runs.directory import claim_directory
from vitmae.runs.exit import ABORTED, FAULT, report
from vitmae.runs.launch import RANK_MARKERS, current_launch

_SWEEP = {"-m", "--multirun"}

Task = Callable[[DictConfig], float | None]


def command(
    task: Task,
    config_name: str = "config",
    prepare: Callable[[list[str]], list[str]] | None = None,
    end_sweep: Callable[[Path], bool] | None = None,
) -> Callable[..., int]:
    """Make a command from a function of settings.

    Args:
        task: the function; a sweeper may optimise the value that it returns.
        config_name: the file in conf/ that holds the defaults.
        prepare: may replace the arguments before Hydra reads them.
        end_sweep: called with the directory of a sweep when it ends or is interrupted; returns False if a job failed.

    Returns:
        A function that takes the arguments (by default those of the process) and returns the exit code.
    """

    @wraps(task)
    def main(arguments: Sequence[str] | None = None) -> int:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
        use_large_pages()
        before, codes = sys.argv, [0]
        flags, overrides = split_arguments(sys.argv[1:] if arguments is None else arguments)
        arguments = [*flags, *map(quoted, overrides)]  # Hydra requires all flags on one side of the overrides
        sys.argv = [before[0], *arguments]
        if {"--help", "-h"} & set(arguments):
            print(help_text(config_name))
            return 0
        try:
            if prepare is not None:
                sys.argv[1:] = prepare(arguments)
            sys.argv[1:] += _quiet_rank() + _short_names(flags, overrides)
            hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(_job(task, codes))()
        except (HydraException, OmegaConfBaseException) as error:
            codes.append(report(UserError(explain(error, config_name, overrides))))
        except Exception as error:
            codes.append(report(error))
        except KeyboardInterrupt:
            codes.append(ABORTED)
        except SystemExit as end:  # after --help, or after an interruption, which also ends a sweep
            codes.append(end.code if isinstance(end.code, int) else 0)
        finally:
            sweep = _sweep_directory()
            if end_sweep is not None and sweep is not None:
                codes.append(0 if end_sweep(sweep) else FAULT)
            sys.argv = before
        return max(codes)

    return main


def call_target(config: DictConfig) -> None:
    """The task of a command whose settings are the arguments of one function, which `_target_` names.

    Raises:
        UserError: a setting is missing, unknown or out of range, or the function raises it.
    """
    settings = resolved(config)
    check_settings(settings)
    build(settings)


def _job(task: Task, codes: list[int]) -> Task:
    """The function that Hydra calls, in a sweep once for each job: an error of one job does not stop the others."""

    @wraps(task)
    def job(config: DictConfig) -> float | None:
        try:
            with _on_its_own():
                return task(config)
        except Exception as error:
            codes.append(report(error))
            return float("nan")

    return job


@contextmanager
def _on_its_own() -> Iterator[None]:
    """Make a job of a sweep look like a separate command.

    Lightning starts the other ranks by running this process's command line again, which in a sweep would start the
    whole sweep. So the command line becomes that of the job, and the environment and the process group that a job's
    ranks leave behind are removed before the next job.
    """
    import __main__

    settings, arguments, spec = HydraConfig.get(), sys.argv, __main__.__spec__
    environment = {name: os.environ.get(name) for name in RANK_MARKERS}
    if settings.mode == RunMode.MULTIRUN:
        flags = [flag for flag in split_arguments(arguments[1:])[0] if flag not in _SWEEP]
        sys.argv = [arguments[0], *flags, *settings.overrides.task]
        __main__.__spec__ = find_spec(f"vitmae.{settings.job.name}")
        node = cast(DictConfig, settings)
        with read_write(node), open_dict(node):
            node.run.dir = settings.runtime.output_dir
    try:
        yield
    finally:
        sys.argv, __main__.__spec__ = arguments, spec
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if "torch" in sys.modules:
            from torch import distributed

            if distributed.is_available() and distributed.is_initialized():
                distributed.destroy_process_group()


class SweepStart(Callback):
    """Hydra's callback at the start of a sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the choices of the groups known before the sweep's directory is named: `${name}` needs them."""
        HydraConfig.instance().set_config(config)


def _sweep_directory() -> Path | None:
    """The directory of the sweep that has just ended; None after a single run."""
    settings = cast(DictConfig | None, HydraConfig.instance().cfg)
    directory = None
    if settings is not None and settings.hydra.mode == RunMode.MULTIRUN:
        directory = Path(settings.hydra.sweep.dir)
    HydraConfig.instance().cfg = None
    return directory


def _quiet_rank() -> list[str]:
    """Overrides for ranks that srun or torchrun started: only the first rank writes Hydra's files."""
    launch = current_launch()
    if not launch.separate or launch.rank == 0:
        return []
    return ["hydra.output_subdir=null", f"hydra.job.name=rank{launch.rank}"]


def _short_names(flags: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """An override for a sweep: the names of its jobs show only the settings that differ."""
    if not _SWEEP & set(flags):
        return []
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    fixed = [override.key_or_group for override in parsed if not override.is_sweep_override()]
    return [f"hydra.job.config.override_dirname.exclude_keys={json.dumps(fixed)}"]


def _claim(runs: str, name: str) -> str:
    return str(claim_directory(Path(runs) / name, current_launch(), Path(runs)))


def _slug(text: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", text)[:120].strip("_")


def _choices() -> DictConfig:
    choices = HydraConfig.get().runtime.choices
    return OmegaConf.create({group: choice for group, choice in choices.items() if "/" not in group})


# Resolvers that conf/config.yaml uses; registered on import, so that the processes of a launcher have them too.
OmegaConf.register_new_resolver("claim", _claim, use_cache=True, replace=True)  # a new directory, of this run alone
OmegaConf.register_new_resolver("slug", _slug, replace=True)  # a text that can be a file name
OmegaConf.register_new_resolver("choices", _choices, replace=True)  # the file of each config group
