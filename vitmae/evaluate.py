"""Evaluate a checkpoint on frozen features: `python -m vitmae.evaluate ckpt=last`; `--help` lists the probes."""

import logging
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from vitmae.command import call_target, command
from vitmae.composition import split_arguments, store_evaluation, trusted_names
from vitmae.errors import UserError
from vitmae.evaluation.probe_name import Probe, ProbeName
from vitmae.files import user_path
from vitmae.limits import Seed, Text, check_arguments

_log = logging.getLogger(__name__)


@check_arguments()
def evaluate(
    ckpt: Text,
    data: Any,
    knn: Probe,
    linear: Probe,
    logistic: Any,
    fewshot: Probe,
    attentive: Probe,
    dense: Probe,
    probe: Literal["all"] | ProbeName | list[ProbeName] = "all",
    encoder: Literal["trained", "untrained", "both"] = "trained",
    split: Literal["val", "test"] | None = None,
    limit: Annotated[int, Ge(1)] | None = None,
    token_images: Annotated[int, Ge(1)] | None = 5000,
    seed: Seed = 0,
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto",
    device: Text | None = None,
    features: Text | None = None,
    out: Text | None = None,
    runs: Text = "runs",
    trust: Sequence[Text] = (),
) -> None:
    """Run probes, print a table, and write it as JSON, Markdown and CSV.

    Args:
        ckpt: see `vitmae.trained.model.find_model`.
        data: the images, a `vitmae.data.datamodule.ImageData`.
        knn: a probe of `vitmae.evaluation.probes`, as are the five that follow.
        linear: a probe.
        logistic: a probe.
        fewshot: a probe.
        attentive: a probe.
        dense: a probe.
        probe: the probes to run; ``all``: those that fit the data and the checkpoint.
        encoder: the trained one, one with fresh weights, or both.
        split: the split that is scored; None: test, or val if the set has no test split.
        limit: the largest number of images per split; None: all.
        token_images: the largest number of images per split for probes of patch tokens; None: all.
        seed: the seed of the probes.
        precision: see `vitmae.trained.model.Model`.
        device: where the encoder runs; None: the GPU, or the CPU on a machine without one.
        features: the folder of cached features; None: that of `vitmae.data.cache.cache_dir`.
        out: the JSON file; None: ``evaluation/<time>.json`` in the run's directory.
        runs: the folder in which ``ckpt=last`` looks for runs.
        trust: full names of further classes that the checkpoint may build, see `vitmae.classes`.

    Raises:
        UserError: the checkpoint, the data and the probes do not fit each other, or a folder cannot be written.
    """
    if out is not None and Path(out).suffix != ".json":
        raise UserError(f"out={out}: the name must end in .json; Markdown and CSV are written beside it")

    from vitmae.atomic import make_folder
    from vitmae.data.cache import cache_dir
    from vitmae.evaluation.choice import choose_probes, choose_split, require_no_idle_settings, require_same_channels
    from vitmae.evaluation.data_settings import read_once
    from vitmae.evaluation.feature_store import FeatureStore
    from vitmae.evaluation.probe_data import VAL_SHARE_OF_TRAIN, ProbeData
    from vitmae.evaluation.probes import Classifier, CollapseMonitors
    from vitmae.evaluation.scores import Score, as_table, write_scores
    from vitmae.runs.directory import read_summary
    from vitmae.runs.exit import short
    from vitmae.tables import as_text
    from vitmae.trained.device import find_device
    from vitmae.trained.model import Model, find_model
    from vitmae.weights.saved import home_of

    torch_device = find_device(device)
    saved = read_once(find_model(ckpt, runs), trust)
    require_same_channels(saved, data)
    probes = {
        "knn": knn,
        "linear": linear,
        "logistic": logistic,
        "fewshot": fewshot,
        "attentive": attentive,
        "dense": dense,
        "collapse": CollapseMonitors(),
        "classifier": Classifier(),
    }
    if probe != "all":
        require_no_idle_settings([probe] if isinstance(probe, str) else probe, probes, probe)
    data.prepare()
    scored = choose_split(data, split)
    names = choose_probes(probe, data, saved, most_logistic=logistic.max_images, encoder=encoder)
    require_no_idle_settings(names, probes, probe)
    root = user_path(features) if features else cache_dir() / "features"
    path = user_path(out) if out else (home_of(saved.path) / "evaluation" / f"{datetime.now():%Y-%m-%d-%H-%M-%S}.json")
    make_folder(path.parent, f"out={path}")  # before hours of computing
    make_folder(root, f"features={root}")
    images = {"train": data.num_train, "val": data.num_val, "test": data.num_test}
    choosing = data.num_val if scored == "test" else f"{VAL_SHARE_OF_TRAIN:.0%} of these"
    _log.info(
        "%s on %s: %d training images, %s choose hyper-parameters, %d are scored (%s split), at %d x %d pixels%s",
        short(saved.path.resolve()),
        torch_device,
        data.num_train,
        choosing,
        images[scored],
        scored,
        *data.img_size,
        "" if limit is None else f"; at most {limit} of each split",
    )
    scores: list[Score] = []
    for which in ("trained", "untrained") if encoder == "both" else (encoder,):
        model = Model(saved, torch_device, precision, img_size=data.img_size, untrained=which == "untrained")
        store = FeatureStore(model, data, root, limit=limit, token_images=token_images)
        if {"attentive", "dense"} & set(names):
            for part in ("train", "val", scored):  # first, so that the other probes can use the same pass
                store(part, patches=True)
        probe_data = ProbeData(model, store, data, scored, seed)
        for name in names:
            if not (which == "untrained" and name == "classifier"):
                scores += probes[name].run(probe_data)
    about = {
        "checkpoint": str(saved.path.resolve()),
        "run": read_summary(home_of(saved.path)).get("id"),
        "objective": saved.objective,
        "split": scored,
        "seed": seed,
        "images": images,
        "limit": limit,
        "img_size": list(data.img_size),
        "precision": model.precision,
        "command": sys.argv[1:],
    }
    written = write_scores(path, scores, about)
    _log.info("\n%s\n", as_text(as_table(scores)))
    if any(score.is_chosen for score in scores):
        _log.info("* this k is the best on the validation images")
    if "classifier" in names and scored == "val":
        _log.info("classifier: its checkpoint was chosen on the same validation images, so its accuracy is too high")
    _log.info("%s", "  ".join(str(short(file.resolve())) for file in written))


def fill_in_data(arguments: list[str]) -> list[str]:
    """Fill in `data`: the settings of the run, or of ``data=<choice>`` at the checkpoint's image size.

    Raises:
        UserError: the command line sweeps, the checkpoint cannot be read, or the other set's settings are wrong.
    """
    flags, overrides = split_arguments(arguments)
    given = dict(override.split("=", 1) for override in overrides if "=" in override)
    if "ckpt" not in given:
        return arguments
    if {"-m", "--multirun"} & set(flags):
        raise UserError("-m: evaluate scores one checkpoint and cannot sweep: run it once per checkpoint")
    from vitmae.evaluation.data_settings import of_run, read_once  # here, because they are heavy
    from vitmae.trained.model import find_model

    trust = trusted_names(overrides)
    saved = read_once(find_model(given["ckpt"].strip("'\""), given.get("runs", "runs")), trust)
    return [*flags, "--config-name=evaluation", *store_evaluation(overrides, of_run(saved, trust))]


main = command(call_target, "evaluate", prepare=fill_in_data)

if __name__ == "__main__":
    sys.exit(main())
