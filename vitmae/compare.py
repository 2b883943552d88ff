"""Compare ways to pre-train: `python -m vitmae.compare out=FOLDER data=folder data.path=photos/`."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vitmae.atomic import make_folder
from vitmae.classes import unlisted_classes
from vitmae.command import command
from vitmae.comparison.plan import SCRATCH, Design, Job, Method, Row, plan
from vitmae.composition import compose, config_folders, group_choices, split_arguments, store_evaluation, store_node
from vitmae.config import build, check_settings, config_dir, locate, resolved
from vitmae.errors import UserError
from vitmae.files import user_path
from vitmae.runs.reach import refuse_ways_out

if TYPE_CHECKING:
    from vitmae.comparison.check import PlannedRun

_SHARED = (
    "data",
    "backbone",
    "trainer",
    "logger",
    "compile",
    "checkpoint",
    "panel",
    "probe",
    "experiment",
)
"""Settings of `vitmae.train` that apply to all runs when the command line gives them."""
_OVERRIDE_LISTS = ("pretrain", "finetune", "scratch", "evaluate")
"""Settings that hold overrides of another command; Hydra's grammar cannot read overrides inside a list."""
_log = logging.getLogger(__name__)


def compare(config: DictConfig) -> None:
    """Run all jobs that are not finished, and write the report after each row.

    Raises:
        UserError: a setting is wrong, or a job failed.
    """
    settings = resolved(config)
    check_settings(settings)
    design: Design = build(settings)

    from vitmae.comparison.check import require_space
    from vitmae.comparison.report import accuracy_table, write_report
    from vitmae.comparison.results import gather
    from vitmae.comparison.runner import run_jobs
    from vitmae.runs.exit import short
    from vitmae.tables import as_text

    folder = user_path(design.out).resolve()
    refuse_ways_out(folder)
    methods = _methods(design)
    one_seed = [row for row in plan(design, methods, folder) if row.seed == max(design.seeds)]
    planned = _check_jobs(one_seed)
    own_classes = sorted({name for run in planned.values() for name in unlisted_classes(run.saved.settings).values()})
    own_code = [f"--config-dir={own}" for own in config_folders()[1:]]
    own_code += [f"trust=[{','.join(own_classes)}]"] if own_classes else []
    rows = plan(design, methods, folder, own_code)
    make_folder(folder, f"out={design.out}")
    require_space(folder, rows, planned)
    failures: dict[str, str] = {}
    for row in run_jobs(rows, folder, failures):
        written = write_report(design, rows, gather(rows, folder, own_classes), folder)
        _log.info("%s, seed %d is finished: %s", row.method.name, row.seed, short(written[0]))
    _log.info("\n%s\n", as_text(accuracy_table(gather(rows, folder, own_classes))))
    if failures:
        raise UserError(f"{len(failures)} jobs failed, the first: {next(iter(failures.values()))}")


def _methods(design: Design) -> list[Method]:
    """The methods of a design; each objective declares its title and whether it needs labels.

    Raises:
        UserError: a method is not a choice of the group `model`.
    """
    methods = []
    for name in design.methods:
        if name == SCRATCH.name:
            methods.append(SCRATCH)
            continue
        model = "vit" if name == "supervised" else name
        settings = compose([f"model={model}", *design.train, *design.pretrain, *design.own.get(name, ())])
        objective: Any = locate(settings["model"]["_target_"])
        methods.append(Method(name, objective.title, model, objective.needs_labels))
    titles = [method.title for method in methods]
    return [  # two recipes of one objective have the same title
        replace(method, title=f"{method.title} ({method.name})") if titles.count(method.title) > 1 else method
        for method in methods
    ]


def _check_jobs(rows: Sequence[Row]) -> dict[Path, "PlannedRun"]:
    """Check each job as its own command would, before the first one starts.

    Args:
        rows: with one seed; the other seeds differ in nothing else.

    Returns:
        The training runs by their place.

    Raises:
        UserError: a job would be refused; the message begins with its method and stage.
    """
    from vitmae.comparison.check import JobChecks

    checks = JobChecks(rows)
    planned: dict[Path, PlannedRun] = {}
    for row in rows:
        for job in (row.pretrain, *row.finetunes, row.probes, *row.classifiers):
            if job is None:
                continue
            try:
                if job.command_name == "train":
                    planned[job.place] = checks.training(job, compose(job.overrides))
                else:
                    run = planned[job.evaluated_run]
                    checks.evaluation(run, _evaluation_settings(job, run))
            except UserError as error:
                raise UserError(f"{job.method}, {job.stage}: {error}") from error
    return planned


def _evaluation_settings(job: Job, run: "PlannedRun") -> dict[str, Any]:
    """The settings that `vitmae.evaluate` will find for a job, with the `data` of the run that it evaluates."""
    from vitmae.evaluation.data_settings import of_run

    data = of_run(run.saved, trust=list(unlisted_classes(run.saved.settings).values()))
    return compose(store_evaluation(job.overrides, data), "evaluation")


def store_overrides(arguments: list[str]) -> list[str]:
    """Move overrides of other commands into the settings that hold them; Hydra reads the others.

    Raises:
        UserError: an override of `model` does not say which runs it is for, or a bracket or quote is not closed.
    """
    flags, overrides = split_arguments(arguments)
    node: Any = OmegaConf.load(config_dir() / "compare.yaml")
    methods = {*group_choices("model"), "supervised"}
    others = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in _OVERRIDE_LISTS:
            node[key] = split_overrides(value)
        elif key == "train":
            node.train.extend(split_overrides(value))
        elif (group := key.lstrip("+~").partition(".")[0]) in _SHARED:
            node.train.append(override)
        elif group == "model":
            raise UserError(
                f"{override}: name the runs that it is for: pretrain=[{override}], mae=[...] or finetune=[...]; "
                "to choose models, set methods=[...]"
            )
        elif key in methods:
            node.own[key] = split_overrides(value)
        else:
            others.append(override)
    store_node("comparison", node)
    return [*flags, "--config-name=comparison", *others]


def split_overrides(text: str) -> list[str]:
    """``[a=1,b=[2,3]]`` or ``a=1 b=[2,3]`` -> ``a=1``, ``b=[2,3]``: split at commas and blanks outside brackets.

    Raises:
        UserError: a bracket or quote is not closed.
    """
    inner = text.strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    overrides: list[str] = []
    override, depth, quote = "", 0, ""
    for letter in inner:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in "[{(") - (letter in "]})") if not quote else 0
        if letter in ", \t\n" and not depth and not quote:
            overrides, override = [*overrides, override], ""
        else:
            override += letter
    if depth or quote:
        raise UserError(f"{text}: a bracket or quote is not closed: close it")
    return [override for override in [*overrides, override] if override]


main = command(
    compare, "compare", prepare=store_overrides, keeps="finished jobs are kept, and the running one is saved"
)

if __name__ == "__main__":
    sys.exit(main())
