"""Train an objective: `python -m vitmae.train model=mae data=digits`; `--help` lists the choices.

    settings -> data -> backbone -> objective -> fit -> results

Heavy modules are imported inside the functions, so that `--help` and `--cfg job` answer at once.
"""

import logging
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vitmae.command import command
from vitmae.composition import quoted, split_arguments, store_settings, trusted_names
from vitmae.config import build, check_settings, resolved, takes
from vitmae.errors import UserError
from vitmae.runs.directory import RunDirectory
from vitmae.runs.exit import ending, short
from vitmae.runs.launch import Launch, current_launch
from vitmae.runs.resume import find_resumption
from vitmae.runs.settings import require_all
from vitmae.runs.sweep import report_sweep

_RESUMED = "resumed_run"
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
    ckpt = Path(settings["ckpt"]) if settings["ckpt"] else None
    is_resumed = ckpt is not None and run.path in ckpt.parents
    is_requeued = run.start(launch, name=settings["name"], choices=settings["choices"], is_resumed=is_resumed)
    if is_requeued and run.last.exists():
        ckpt = run.last
    with ending(run, launch):
        overrides = list(HydraConfig.get().overrides.task)
        return _train(settings | {"ckpt": None}, overrides, run, launch, ckpt)


def _train(
    settings: dict[str, Any], overrides: list[str], run: RunDirectory, launch: Launch, ckpt: Path | None
) -> float:
    import torch

    from vitmae.runs.interruption import Interruption
    from vitmae.runs.preflight import check_devices, resolve_precision
    from vitmae.runs.settings import RunSettings
    from vitmae.training.accounting import Accounting
    from vitmae.training.averaging import WeightAverage
    from vitmae.training.checkpoints import Checkpoints
    from vitmae.training.fit import fit
    from vitmae.training.loggers import MetricsFile, log_figure
    from vitmae.training.online import LearnBaselines
    from vitmae.training.progress import Progress
    from vitmae.training.setup_report import SetupReport
    from vitmae.training.step_log import StepLog

    trainer = settings["trainer"]
    check_devices(trainer["accelerator"], trainer["devices"])
    trainer["precision"] = resolve_precision(trainer["precision"], trainer["accelerator"])
    check_settings(settings, homes={"": RunSettings, "checkpoint": Checkpoints})
    run.save_config(OmegaConf.to_yaml(settings), ["python", "-m", "vitmae.train", *overrides])

    torch.manual_seed(settings["seed"])  # for the initial weights; everything else is drawn from keys
    data = build(settings["data"])
    data.prepare()
    backbone = build(settings["backbone"])
    model = _with_classes(settings["model"], data.num_classes)
    objective = build(model, backbone=backbone, mean=data.mean, std=data.std)
    facts = {
        "class_names": data.class_names and list(data.class_names),
        "num_classes": model.get("num_classes"),
        "crop_pct": data.val_crop_pct,
    }
    if ckpt is None:
        facts |= _load_weights(objective, settings)
    if settings["compile"]:
        objective.compile_blocks()

    loggers = [build(node, run=run) for node in settings["logger"].values()]
    if not any(isinstance(logger, MetricsFile) for logger in loggers):
        loggers.append(MetricsFile(run))
    every_n_steps = settings["checkpoint"]["every_n_steps"]
    checkpoints = Checkpoints(run, objective.monitor, every_n_steps, settings, Interruption(), facts)
    probe = build(settings["probe"])
    panel = build(settings["panel"], folder=run.figures, log=partial(log_figure, loggers))
    parts = {
        **{name: settings[name] for name in ("name", "runs", "seed", "ckpt", "weights_min_match", "trust")},
        "data": data,
        "backbone": backbone,
        "model": objective,
        "logger": dict(zip(settings["logger"], loggers, strict=False)),
        "probe": probe,
        "panel": panel,
        "checkpoint": checkpoints,
    }
    ema_decay = objective.optimizer.ema_decay
    callbacks = [
        Accounting(settings, parts, overrides, _without_effect(settings, run, data, is_resumed=ckpt is not None)),
        SetupReport(run.path / "effects.txt"),
        *([WeightAverage(ema_decay)] if ema_decay is not None else []),
        LearnBaselines(),
        probe,
        panel,
        StepLog(),
        Progress(),
    ]
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
    if launch.rank == 0:
        _log_results(run, metrics)
    return metrics.get(objective.monitor[0], float("nan"))


def _with_classes(model: Mapping[str, Any], num_classes: int | None) -> dict[str, Any]:
    """The model's settings; an objective with classes and without a number gets that of the data.

    Raises:
        UserError: the given number is smaller than that of the data.
    """
    if not takes(model["_target_"], "num_classes"):
        return dict(model)
    given = model.get("num_classes")
    if given is not None and num_classes is not None and given < num_classes:
        raise UserError(
            f"model.num_classes={given}, but the data has {num_classes} classes: must be ≥ {num_classes}, or null"
        )
    return {**model, "num_classes": num_classes if given is None else given}


def _without_effect(settings: Mapping[str, Any], run: RunDirectory, data: Any, is_resumed: bool) -> dict[str, str]:
    """Settings that have no effect in this run, each with the reason and the remedy."""
    without_effect = {}
    if is_resumed:
        without_effect = dict.fromkeys(
            ("model.weights", "backbone.weights", "weights_min_match"), "a resumed run loads its weights: leave it out"
        )
    elif settings["model"].get("weights") is None and settings["backbone"].get("weights") is None:
        without_effect["weights_min_match"] = "no weights are loaded: give backbone.weights= or model.weights= too"
    if settings["name"] != (name := run.summary()["name"]):
        without_effect["name"] = f"the run already has the name {name}: leave it out"
    if data.num_classes is None:
        without_effect["probe"] = "these images have no labels: leave it out"
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
    for name in [*titles, *sorted(name for name in metrics if name.startswith("val/") and name not in titles)]:
        if name in metrics:
            _log.info("%-24s %.5g", titles.get(name, name), metrics[name])
    picture = run.figures / "reconstruction.png"
    for name, path in {"reconstruction": picture, "metrics": run.metrics, "checkpoints": run.checkpoints}.items():
        if path.exists():
            _log.info("%-24s %s", name, short(path))


def resume(arguments: list[str]) -> list[str]:
    """Replace `ckpt=last|best|PATH` by the path of the checkpoint, and the defaults by the settings of its run.

    Raises:
        UserError: the command line sweeps, or no checkpoint is found, see `vitmae.runs.resume.find_resumption`.
    """
    flags, overrides = split_arguments(arguments)
    ckpt = [override.partition("=")[2].strip("'\"") for override in overrides if override.startswith("ckpt=")]
    if not ckpt or ckpt[-1] in ("", "null"):
        return arguments
    if {"-m", "--multirun"} & set(flags):
        raise UserError("-m: ckpt= resumes one run, which cannot be swept: leave -m or ckpt= out")
    runs = [override.partition("=")[2].strip("'\"") for override in overrides if override.startswith("runs=")]
    others = [override for override in overrides if not override.startswith("ckpt=")]
    resumption = find_resumption(ckpt[-1], Path(runs[-1] if runs else "runs"), others, trusted_names(overrides))
    store_settings(_RESUMED, resumption.settings)
    place = []
    if resumption.directory is not None:
        place = [quoted(f"hydra.run.dir={resumption.directory}"), "hydra.output_subdir=null"]
    return [*flags, f"--config-name={_RESUMED}", quoted(f"ckpt={resumption.checkpoint}"), *resumption.overrides, *place]


main = command(train, prepare=resume, end_sweep=report_sweep)

if __name__ == "__main__":
    sys.exit(main())
