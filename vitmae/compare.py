"""Compare ways to pre-train: `python -m vitmae.compare out=FOLDER data=folder data.path=photos/`."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vitmae.atomic import make_folder
from vitmae.command import call_target, command, compose, split_arguments, store_node
from vitmae.comparison.plan import Method
from vitmae.config import check_settings, config_dir
from vitmae.errors import UserError
from vitmae.evaluation.probe_names import Probe

_TRAINING = (
    "data",
    "backbone",
    "trainer",
    "logger",
    "compile",
    "checkpoint",
    "panel",
    "probe",
    "experiment",
    "weights_min_match",
)
"""What of the command line is said of all runs."""
_STAGES = ("pretrain", "masked_patch", "mae", "supervised", "finetune", "scratch", "evaluate")
"""Settings that hold words of another command, which Hydra's own grammar cannot read inside of a list."""
_log = logging.getLogger(__name__)


def compare(
    out: str,
    methods: list[Method],
    seeds: list[int],
    labels: float,
    probes: list[Probe],
    base_lrs: list[float],
    train: list[str],
    pretrain: list[str],
    masked_patch: list[str],
    mae: list[str],
    supervised: list[str],
    finetune: list[str],
    scratch: list[str],
    evaluate: list[str],
) -> None:
    """Do all that is not yet done, and write the report.

    Args:
        out: the folder of the comparison.
        methods: see `vitmae.comparison.plan.Design`, as for all that follow.
        seeds: likewise.
        labels: likewise.
        probes: likewise.
        base_lrs: likewise.
        train: `common` there.
        pretrain: likewise.
        masked_patch: likewise.
        mae: likewise.
        supervised: likewise.
        finetune: likewise.
        scratch: likewise.
        evaluate: likewise.

    Raises:
        UserError: a setting is wrong, or a job failed.
    """
    from vitmae.comparison.plan import Design, plan
    from vitmae.comparison.report import accuracy_table, write_report
    from vitmae.comparison.results import gather
    from vitmae.comparison.runner import Stopped, carry_out
    from vitmae.runs.exit import INTERRUPTED, short
    from vitmae.tables import as_text

    design = Design(
        methods,
        seeds,
        labels,
        probes,
        base_lrs,
        train,
        pretrain,
        masked_patch,
        mae,
        supervised,
        finetune,
        scratch,
        evaluate,
    )
    folder = Path(out).expanduser().resolve()
    rows = plan(design, folder)
    for row in rows[: len(methods)]:  # the other seeds' differ in the seed alone
        for job in (row.pretrain, *row.finetunes):
            if job is not None:
                _check_training(job.words)
    _check_evaluation(evaluate)
    make_folder(folder, f"out={out}")
    failures: dict[str, str] = {}
    try:
        for row in carry_out(rows, folder, failures):
            written = write_report(design, rows, gather(rows, folder), folder)
            _log.info("%s, seed %d is done: %s", row.method, row.seed, short(written[0]))
    except Stopped:
        _log.info("stopped; the same command goes on")
        raise SystemExit(INTERRUPTED) from None
    _log.info("\n%s\n", as_text(accuracy_table(gather(rows, folder))))
    if failures:
        raise UserError(f"{len(failures)} jobs failed, the first: {next(iter(failures.values()))}")


def _check_training(words: Sequence[str]) -> None:
    """Refuse words of `vitmae.train` that it would refuse.

    Raises:
        UserError: see `vitmae.command.compose` and `vitmae.config.check_settings`.
    """
    from vitmae.runs.preflight import check_devices, resolve_precision

    settings = compose(words)
    trainer = settings["trainer"]
    check_devices(trainer["accelerator"], trainer["devices"])
    trainer["precision"] = resolve_precision(trainer["precision"], trainer["accelerator"])
    check_settings(settings)


def _check_evaluation(words: Sequence[str]) -> None:
    """The same of `vitmae.evaluate`, but for its `data`, which depend on the run."""
    known = [word for word in words if not word.startswith("data")]
    check_settings(compose(["ckpt=run", *known], "evaluate"))  # each evaluation has a run of its own


def take_words(arguments: list[str]) -> list[str]:
    """Put the words of other commands into the settings that hold them, before Hydra reads the rest."""
    flags, overrides = split_arguments(arguments)
    node: Any = OmegaConf.load(config_dir() / "compare.yaml")
    others = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in _STAGES:
            node[key] = split_words(value)
        elif key == "train":
            node.train.extend(split_words(value))
        elif (group := key.lstrip("+~").partition(".")[0]) in _TRAINING:
            node.train.append(override)
        elif group == "model":
            raise UserError(
                f"{override}: say which runs it is for, as in pretrain=[{override}], mae=[...] or "
                "finetune=[...]; methods=[...] are the models"
            )
        else:
            others.append(override)
    store_node("comparison", node)
    return [*flags, "--config-name=comparison", *others]


def split_words(text: str) -> list[str]:
    """``[a=1,b=[2,3]]`` or ``a=1 b=[2,3]`` -> ``a=1``, ``b=[2,3]``: apart at commas and blanks outside of brackets.

    Raises:
        UserError: a bracket or quote is not closed.
    """
    inner = text.strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    words: list[str] = []
    word, depth, quote = "", 0, ""
    for letter in inner:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in "[{(") - (letter in "]})") if not quote else 0
        if letter in ", \t\n" and not depth and not quote:
            words, word = [*words, word], ""
        else:
            word += letter
    if depth or quote:
        raise UserError(f"{text}: a bracket or quote is not closed")
    return [word for word in [*words, word] if word]


main = command(call_target, "compare", prepare=take_words)

if __name__ == "__main__":
    sys.exit(main())
