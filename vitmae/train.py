"""Train an objective: `python -m vitmae.train model=mae data=digits`; `--help` lists the choices.

    settings -> data -> backbone -> objective -> fit -> results

Heavy modules are imported inside the functions, so that `--help` and `--cfg job` answer at once.
"""

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from vitmae.command import command
from vitmae.composition import compose, split_arguments
from vitmae.config import build, locate, resolved
from vitmae.errors import UserError
from vitmae.following import agreement, words_for_hydra
from vitmae.runs.directory import RunDirectory
from vitmae.runs.exit import ending, short
from vitmae.runs.launch import Launch, current_launch
from vitmae.runs.ranks import cause_first, taking_part, watching_others
from vitmae.runs.settings import require_all
from vitmae.runs.start import Start, find_start
from vitmae.runs.sweep import report_sweep

_log = logging.getLogger(__name__)


def train(config: DictConfig) -> float:
    """Train as the settings say, in the directory that Hydra made.

    Returns:
        The final value of the metric that the objective monitors, for a sweeper that optimises it.

    Raises:
        UserError: a setting, the data or the checkpoint is wrong.
    """
    launch = current_launch()
    if launch.rank > 0:  # only the first rank prints
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.NOTSET if isinstance(handler, logging.FileHandler) else logging.ERROR)
    run = RunDirectory(Path(HydraConfig.get().runtime.output_dir), is_writer=launch.rank == 0)
    settings = resolved(config)
    require_all(settings)
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    with taking_part(run, launch):
        if in_sweep and run.summary().get("state") == "finished":  # before the sweep was interrupted
            _log.info("already finished: %s", short(run.path))
            return _monitored(settings, run)
        start = find_start(run, launch, list(HydraConfig.get().overrides.task), settings, in_sweep)
        if start.has_nothing_left:
            _log.info("this run has finished: nothing is left to train; to train longer: trainer.max_epochs=…")
            _log_results(run, run.summary().get("metrics", {}))
            return _monitored(settings, run)
        with watching_others(run, launch), ending(run, launch), cause_first(launch):
            settings = settings | {"ckpt": None}
            start.save_early(settings)
            return _train(settings, start)


def _monitored(settings: Mapping[str, Any], run: RunDirectory) -> float:
    """The final value of the metric that the objective of a finished run monitors."""
    objective: Any = locate(settings["model"]["_target_"])
    return run.summary().get("metrics", {}).get(objective.monitor[0], float("nan"))


def _train(settings: dict[str, Any], start: Start) -> float:
    import torch

    from vitmae.models.objective import with_classes
    from vitmae.training.accounting import refuse_idle
    from vitmae.training.fit import fit
    from vitmae.training.settings import check_run

    run, ckpt = start.run, start.ckpt
    check_run(settings)
    idle = _without_effect(settings, start)
    refuse_idle(settings, start.overrides, idle)
    if ckpt is None:  # a resumed run saves its settings when the checkpoint has turned out to fit them
        start.save(settings)
    else:
        from vitmae.weights.shapes import check_memory

        check_memory(settings, ckpt)
    if start.launch.rank == 0:
        start.share(settings)
        if start.launch.separate:
            agreement(start.launch, start.overrides).answer({"directory": str(run.path)})

    torch.manual_seed(settings["seed"])  # for the initial weights; everything else is drawn from keys
    data = build(settings["data"])
    data.prepare()
    if data.num_classes is None:
        idle["probe"] = "these images have no labels: leave it out"
        refuse_idle(settings, start.overrides, idle)
    backbone = build(settings["backbone"])
    model = with_classes(settings["model"], data.num_classes)
    objective = build(model, backbone=backbone, mean=data.mean, std=data.std)
    if objective.needs_labels:
        data.require_labels()
    facts = {
        "class_names": data.class_names and list(data.class_names),
        "num_classes": model.get("num_classes"),
        "crop_pct": data.val_crop_pct,
    }
    if ckpt is None:
        facts |= _load_weights(objective, settings)
    if settings["compile"]:
        objective.compile_blocks()

    callbacks, checkpoints, loggers = _callbacks(settings, start, {"data": data, "model": objective}, facts, idle)
    metrics = fit(
        objective,
        data,
        build(settings["trainer"] | {"_partial_": True}),
        run=run,
        checkpoints=checkpoints,
        callbacks=callbacks,
        loggers=loggers,
        settings=settings,
        ckpt=ckpt,
    )
    metrics = run.summary().get("metrics", {}) | metrics
    run.record("finished", metrics=metrics)
    if start.launch.rank == 0:
        _log_results(run, metrics)
    return metrics.get(objective.monitor[0], float("nan"))


def _callbacks(
    settings: Mapping[str, Any],
    start: Start,
    built: Mapping[str, Any],
    facts: Mapping[str, Any],
    idle: Mapping[str, str],
) -> tuple[list[Any], Any, list[Any]]:
    """The callbacks in their order, the one that saves checkpoints, and the loggers."""
    from vitmae.training.accounting import Accounting
    from vitmae.training.averaging import WeightAverage
    from vitmae.training.checkpoints import Checkpoints
    from vitmae.training.loggers import MetricsFile, log_figure
    from vitmae.training.online import LearnBaselines
    from vitmae.training.progress import Progress
    from vitmae.training.resuming import Resuming
    from vitmae.training.safety import Safety
    from vitmae.training.setup_report import SetupReport
    from vitmae.training.step_log import StepLog

    run, objective = start.run, built["model"]
    loggers = [build(node, run=run) for node in settings["logger"].values()]
    if not any(isinstance(logger, MetricsFile) for logger in loggers):
        loggers.append(MetricsFile(run))
    every_n_steps = settings["checkpoint"]["every_n_steps"]
    checkpoints = Checkpoints(run, objective.monitor, every_n_steps, settings, facts)
    safety = Safety(run, settings, facts, settings["on_nonfinite"])
    probe = build(settings["probe"])
    panel = build(settings["panel"], folder=run.figures, log=partial(log_figure, loggers))
    parts = {
        **{name: settings[name] for name in ("name", "runs", "seed", "ckpt", "weights_min_match", "trust")},
        **built,
        "backbone": objective.backbone,
        "logger": dict(zip(settings["logger"], loggers, strict=False)),
        "probe": probe,
        "panel": panel,
        "checkpoint": checkpoints,
        "on_nonfinite": safety.on_nonfinite,
    }
    ema_decay = objective.optimizer.ema_decay
    callbacks = [
        Accounting(settings, parts, start.overrides, idle),
        *([Resuming(run, partial(start.save, settings))] if start.ckpt is not None else []),
        SetupReport(run.path / "effects.txt", start.changes),
        *([WeightAverage(ema_decay)] if ema_decay is not None else []),
        safety,
        LearnBaselines(),
        probe,
        panel,
        StepLog(),
        Progress(),
    ]
    return callbacks, checkpoints, loggers


def _without_effect(settings: Mapping[str, Any], start: Start) -> dict[str, str]:
    """Settings that have no effect in this run, each with the reason and the remedy."""
    without_effect = {}
    if start.is_named:
        without_effect = dict.fromkeys(
            ("model.weights", "backbone.weights", "weights_min_match"), "a resumed run loads its weights: leave it out"
        )
    elif settings["model"].get("weights") is None and settings["backbone"].get("weights") is None:
        without_effect["weights_min_match"] = "no weights are loaded: give backbone.weights= or model.weights= too"
        without_effect["trust"] = "no file is read that could build a class: leave it out"
    if settings["name"] != (name := start.run.summary()["name"]):
        without_effect["name"] = f"the run already has the name {name}: leave it out"
    return without_effect


def _load_weights(objective: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Load the weights that `model.weights` or `backbone.weights` names, if any, and print the report.

    Returns:
        The origin of the weights and their licence, which the checkpoints record.
    """
    facts: dict[str, Any] = {}
    for part, module in (("model", objective), ("backbone", objective.backbone)):
        if (source := settings[part].get("weights")) is not None:
            from vitmae.weights.load import load_weights

            report = load_weights(module, source, min_match=settings["weights_min_match"], trust=settings["trust"])
            _log.info("%s", report)
            facts |= report.origin
    return facts


def _log_results(run: RunDirectory, metrics: Mapping[str, float]) -> None:
    """Print the last lines of a run: its metrics and the places of its files."""
    titles = {
        "val/loss": "held-out loss",
        "val/loss_mean_patch": "  by the mean patch",
        "val/loss_visible_mean": "  by the visible mean",
        "probe/knn": "kNN accuracy",
        "probe/knn_untrained": "  before training",
        "probe/knn_pixels": "  raw pixels",
    }
    others = sorted(name for name in metrics if re.fullmatch(r"val/[\w/.-]+", name) and name not in titles)
    for name in [*titles, *others]:
        if name in metrics:
            _log.info("%-24s %.5g", titles.get(name, name), metrics[name])
    picture = run.figures / "reconstruction.png"
    for name, path in {"reconstruction": picture, "metrics": run.metrics, "checkpoints": run.checkpoints}.items():
        if path.exists():
            _log.info("%-24s %s", name, short(path))


def check_jobs(jobs: list[list[str]]) -> None:
    """Check the runs of a sweep before the first one starts.

    Args:
        jobs: the overrides of each.

    Raises:
        UserError: a run would be refused; the message begins with its number.
    """
    from vitmae.training.check import RunChecks

    checks = RunChecks()
    for number, overrides in enumerate(jobs):
        try:
            checks.check(compose(overrides), overrides)
        except UserError as error:
            raise UserError(f"job {number} of the sweep: {error}") from error


_main = command(train, prepare=words_for_hydra, check_sweep=check_jobs, end_sweep=report_sweep)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with the arguments, by default those of the process, and return the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    launch = Launch()
    with suppress(UserError):  # which the command tells
        launch = current_launch()  # the ranks may agree on another port, and the environment then names that one
    code = _main(arguments)
    with suppress(UserError):
        if launch.separate and not {"--help", "-h"} & set(words):
            agreement(launch, split_arguments(words)[1]).end(code)  # unless all have agreed
    return code


if __name__ == "__main__":
    sys.exit(main())
