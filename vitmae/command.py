"""What all commands share: a function of settings becomes a command with Hydra's grammar and a clear exit code.

A mistake of the user ends the command with one line on stderr and exit code 2, whether Hydra, the check of the
settings or a constructor finds it. A fault of this project prints its traceback and ends with 1. A signal ends the
command with 75 within seconds, or with 130 if it is Ctrl-C and the command keeps nothing that it could resume.
"""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from vitmae.allocator import use_large_pages
from vitmae.composition import (
    SWEEP_FLAGS,
    check_flags,
    check_words,
    explain,
    help_text,
    mistake_behind,
    quoted,
    split_arguments,
)
from vitmae.config import build, check_settings, config_dir, resolved
from vitmae.errors import UserError
from vitmae.interruption import Interrupted, interruption
from vitmae.machine_faults import explain_machine_fault
from vitmae.runs.directory import claim_directory
from vitmae.runs.exit import report, tell_interruption
from vitmae.runs.launch import RANK_MARKERS, current_launch
from vitmae.runs.sweep import Sweep
from vitmae.sweeping import SweepStart, conclude, ended_sweep, jobs_of, resumed_sweep, short_names

Task = Callable[[DictConfig], float | None]


def command(
    task: Task,
    config_name: str = "config",
    prepare: Callable[[list[str]], list[str]] | None = None,
    check_sweep: Callable[[list[list[str]]], None] | None = None,
    end_sweep: Callable[[Path], bool] | None = None,
    keeps: str = "",
) -> Callable[..., int]:
    """Make a command from a function of settings.

    Args:
        task: the function; a sweeper may optimise the value that it returns.
        config_name: the file in conf/ that holds the defaults.
        prepare: may replace the arguments before Hydra reads them.
        check_sweep: called with the overrides of each job before a sweep starts; may refuse them.
        end_sweep: called with the directory of a sweep when it ends or is interrupted; returns False if a job failed.
        keeps: what is kept after a signal, for a command that resumes if it is given again.

    Returns:
        A function that takes the arguments (by default those of the process) and returns the exit code.
    """

    @wraps(task)
    def main(arguments: Sequence[str] | None = None) -> int:
        with interruption.answered():
            try:
                interruption.check()
                interruption.is_resumable = bool(keeps)
                code = run(sys.argv[1:] if arguments is None else arguments)
            except Interrupted as stop:
                code = tell_interruption(stop, keeps)
            if interruption.is_requested and arguments is None:
                interruption.end_process(code)
            return code

    def run(words: Sequence[str]) -> int:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
        logging.raiseExceptions = False  # a log file on a full disk is no reason to print tracebacks, or to stop
        use_large_pages()
        before, codes = sys.argv, [0]
        flags, overrides = split_arguments(words)
        arguments = [*flags, *map(quoted, overrides)]  # Hydra requires all flags on one side of the overrides
        sys.argv = [before[0], *arguments]
        SweepStart.sweep = sweep = Sweep([*flags, *overrides])
        try:
            if {"--help", "-h"} & set(arguments):
                print(help_text(config_name))
                return 0
            check_flags(flags)
            check_words(config_name, arguments[len(flags) :])
            if prepare is not None:
                sys.argv[1:] = prepare(arguments)
            sys.argv[1:] += _quiet_rank()
            if SWEEP_FLAGS & set(flags):
                if check_sweep is not None:
                    check_sweep(jobs_of(overrides))
                sys.argv[1:] += short_names(overrides) + resumed_sweep(sweep, overrides)
            hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(_job(task, codes))()
        except (HydraException, OmegaConfBaseException) as error:
            codes.append(report(_told(error, config_name, overrides)))
        except Exception as error:
            codes.append(report(error))
        except Interrupted:
            raise
        except SystemExit as end:  # after --help, or after an interrupted run, which also ends a sweep
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            codes.append(end.code if isinstance(end.code, int) else int(end.code is not None))
        finally:
            directory = ended_sweep()
            if end_sweep is not None and directory is not None:
                codes.append(conclude(sweep, directory, end_sweep, max(codes)))
            sys.argv = before
        return max(codes)

    return main


def _told(error: Exception, config_name: str, overrides: Sequence[str]) -> Exception:
    """What is reported of an error of Hydra's: a user's mistake, unless a fault of the machine is its cause."""
    if mistake_behind(error) is None and explain_machine_fault(error) is not None:
        return error
    return UserError(explain(error, config_name, overrides))


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
                interruption.check()  # a library may have swallowed the exception
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
        flags = [flag for flag in split_arguments(arguments[1:])[0] if flag not in SWEEP_FLAGS]
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


def _quiet_rank() -> list[str]:
    """Overrides for ranks that srun or torchrun started: only the first rank writes Hydra's files."""
    launch = current_launch()
    if not launch.separate or launch.rank == 0:
        return []
    return ["hydra.output_subdir=null", f"hydra.job.name=rank{launch.rank}"]


def _claim(runs: str, name: str) -> str:
    try:
        return str(claim_directory(Path(runs) / name, current_launch(), Path(runs)))
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}"
        raise UserError(
            f"runs={runs}: no directory can be made there ({reason}): set runs= to another folder"
        ) from error


def _slug(text: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", text)[:120].strip("_")


def _choices() -> DictConfig:
    choices = HydraConfig.get().runtime.choices
    return OmegaConf.create({group: choice for group, choice in choices.items() if "/" not in group})


# Resolvers that conf/config.yaml uses; registered on import, so that the processes of a launcher have them too.
OmegaConf.register_new_resolver("claim", _claim, use_cache=True, replace=True)  # a new directory, of this run alone
OmegaConf.register_new_resolver("slug", _slug, replace=True)  # a text that can be a file name
OmegaConf.register_new_resolver("choices", _choices, replace=True)  # the file of each config group
