"""Compare ways to pre-train: `python -m vitmae.compare out=FOLDER data=folder data.path=photos/`."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vitmae.atomic import make_folder
from vitmae.classes import unlisted_classes
from vitmae.command import command
from vitmae.comparison.plan import SCRATCH, Design, Method, plan
from vitmae.composition import compose, config_folders, group_choices, split_arguments, store_node
from vitmae.config import build, check_settings, config_dir, locate, resolved
from vitmae.errors import UserError

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

    from vitmae.comparison.report import accuracy_table, write_report
    from vitmae.comparison.results import gather
    from vitmae.comparison.runner import Stopped, run_jobs
    from vitmae.runs.exit import INTERRUPTED, short
    from vitmae.tables import as_text

    folder = Path(design.out).expanduser().resolve()
    methods = _methods(design)
    first_seed = plan(design, methods, folder)[: len(methods)]  # the other seeds differ in nothing else
    jobs = [job for row in first_seed for job in (row.pretrain, *row.finetunes) if job is not None]
    own_classes = sorted({name for job in jobs for name in unlisted_classes(_check_training(job.overrides))})
    _check_evaluation(design.evaluate)
    own_code = [f"--config-dir={own}" for own in config_folders()[1:]]
    own_code += [f"trust=[{','.join(own_classes)}]"] if own_classes else []
    rows = plan(design, methods, folder, own_code)
    make_folder(folder, f"out={design.out}")
    failures: dict[str, str] = {}
    try:
        for row in run_jobs(rows, folder, failures):
            written = write_report(design, rows, gather(rows, folder, own_classes), folder)
            _log.info("%s, seed %d is finished: %s", row.method.name, row.seed, short(written[0]))
    except Stopped:
        _log.info("stopped: run the same command to resume")
        raise SystemExit(INTERRUPTED) from None
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


def _check_training(overrides: Sequence[str]) -> dict[str, Any]:
    """The settings that overrides of `vitmae.train` stand for.

    Raises:
        UserError: `vitmae.train` would refuse them.
    """
    from vitmae.runs.preflight import check_devices, resolve_precision

    settings = compose(overrides)
    trainer = settings["trainer"]
    check_devices(trainer["accelerator"], trainer["devices"])
    trainer["precision"] = resolve_precision(trainer["precision"], trainer["accelerator"])
    check_settings(settings)
    return settings


def _check_evaluation(overrides: Sequence[str]) -> None:
    """Refuse overrides that `vitmae.evaluate` would refuse, except those of `data`, which depend on the run."""
    known = [override for override in overrides if not override.startswith("data")]
    check_settings(compose(["ckpt=run", *known], "evaluate"))  # any value of ckpt: each evaluation has its own


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


main = command(compare, "compare", prepare=store_overrides)

if __name__ == "__main__":
    sys.exit(main())
