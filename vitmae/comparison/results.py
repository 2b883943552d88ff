"""The results of a comparison so far: scores, curves and costs, read from the files of its jobs."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vitmae.comparison.plan import Job, Row
from vitmae.comparison.runner import best_classifier, is_done, seconds_of
from vitmae.config import build
from vitmae.errors import UserError, first_line
from vitmae.evaluation.scores import Score, read_scores
from vitmae.plain_files import read_json, read_yaml
from vitmae.probes.confidence import mean_std, wilson_interval
from vitmae.runs.settings import saved_settings
from vitmae.tokens.patches import pair


@dataclass(frozen=True)
class Line:
    """A line of the accuracy table.

    Attributes:
        probe: see `Score`; ``fine-tuning`` for the classifier.
        pooling: see `Score`; of the classifier, what its head reads.
        shots: images per class of the few-shot probe; None for the others.
    """

    probe: str
    pooling: str
    shots: int | None = None

    @property
    def label(self) -> str:
        """The line's name in the report."""
        name = {"knn": "kNN", "fewshot": f"{self.shots}-shot", "logistic": "logistic regression"}.get(
            self.probe, self.probe
        )
        return name if self.probe in ("fine-tuning", "attentive") else f"{name}, {self.pooling}"


@dataclass(frozen=True)
class Cell:
    """One cell of the accuracy table: the results of one method on one line, on the scored images.

    Attributes:
        per_seed: seed -> accuracy in [0, 1], for the seeds that are finished.
        num_images: the number of scored images.
        settings: seed -> the chosen hyper-parameters.
    """

    per_seed: Mapping[int, float]
    num_images: int
    settings: Mapping[int, Mapping[str, float]]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return mean_std(list(self.per_seed.values()))[0]

    @property
    def std(self) -> float:
        """The standard deviation over seeds, n - 1 in the denominator; nan for one seed."""
        return mean_std(list(self.per_seed.values()))[1]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval (Wilson) of the mean, over the draw of the scored images only."""
        return wilson_interval(self.mean, self.num_images)


@dataclass(frozen=True)
class Cost:
    """What a training run cost.

    Attributes:
        images: that it saw, counted each time.
        flops: of the matrix products, forward and backward.
        seconds: wall time over all attempts; None where it is not known.
        parameters: that were trained.
    """

    images: int
    flops: float
    seconds: float | None
    parameters: int


@dataclass(frozen=True)
class Results:
    """The results of the finished jobs of a comparison.

    Attributes:
        titles: method -> title, in the order of the columns.
        table: line -> method -> cell.
        costs: (method, stage) -> one cost per finished seed.
        curves: (method, stage) -> metric -> for each seed, its (epoch, value) pairs.
        pictures: method -> the file of a reconstruction panel, of its first seed.
        missing: the names of the jobs that are not finished.
        splits: the splits that were scored: test, or val if the set has no test split.
    """

    titles: Mapping[str, str]
    table: Mapping[Line, Mapping[str, Cell]]
    costs: Mapping[tuple[str, str], Sequence[Cost]]
    curves: Mapping[tuple[str, str], Mapping[str, Sequence[Sequence[tuple[float, float]]]]]
    pictures: Mapping[str, Path]
    missing: Sequence[str]
    splits: frozenset[str]


def gather(rows: Sequence[Row], folder: Path, trust: Sequence[str] = ()) -> Results:
    """Read the results of the finished jobs.

    Args:
        rows: the plan.
        folder: the folder of the comparison.
        trust: full names of further classes that the settings of its runs may build, see `vitmae.classes`.
    """
    found: dict[Line, dict[str, dict[int, Score]]] = {}
    costs: dict[tuple[str, str], list[Cost]] = {}
    curves: dict[tuple[str, str], dict[str, list[Sequence[tuple[float, float]]]]] = {}
    pictures: dict[str, Path] = {}
    missing: list[str] = []
    splits: set[str] = set()
    for row in rows:
        method, best = row.method.name, best_classifier(row)
        for job in (row.probes, best):
            if job is not None and is_done(job):
                scores, about = read_scores(job.place)
                splits.add(about.get("split", "test"))
                for score in scores:
                    if (key := _line_of(score)) is not None:
                        found.setdefault(key, {}).setdefault(method, {})[row.seed] = score
        for run in (row.pretrain, row.finetune_of(best) if best else None):
            if run is not None and is_done(run):
                costs.setdefault((method, run.stage), []).append(cost(run, folder, trust))
                for metric, points in curve(run.place).items():
                    curves.setdefault((method, run.stage), {}).setdefault(metric, []).append(points)
                picture = run.place / "figures" / "reconstruction.png"
                if picture.is_file():
                    pictures.setdefault(method, picture)
        jobs = [job for job in (row.pretrain, *row.finetunes, row.probes, best) if job is not None]
        missing += [job.name for job in jobs if not is_done(job)]
    titles = {row.method.name: row.method.title for row in rows}
    table = {key: {method: _cell(by_seed) for method, by_seed in by_method.items()} for key, by_method in found.items()}
    return Results(titles, dict(sorted(table.items(), key=_order)), costs, curves, pictures, missing, frozenset(splits))


def _line_of(score: Score) -> Line | None:
    """The line that a score belongs to, if any; of kNN only the chosen k has one."""
    if score.metric != "accuracy" or (score.probe == "knn" and not score.is_chosen):
        return None
    if score.probe == "classifier":
        return Line("fine-tuning", score.pooling)
    return Line(score.probe, score.pooling, int(score.setting["shots"]) if score.probe == "fewshot" else None)


_LINES = ("knn", "linear", "logistic", "fewshot", "attentive", "fine-tuning")


def _order(item: tuple[Line, object]) -> tuple[int, int, str]:
    key = item[0]
    return _LINES.index(key.probe), key.shots or 0, key.pooling


def _cell(by_seed: Mapping[int, Score]) -> Cell:
    return Cell(
        {seed: score.value for seed, score in by_seed.items()},
        min(score.num_images for score in by_seed.values()),
        {seed: dict(score.setting) for seed, score in by_seed.items()},
    )


def cost(job: Job, folder: Path, trust: Sequence[str] = ()) -> Cost:
    """The cost of a finished training run; its FLOPs are counted on a model without weights (torch's meta device)."""
    from vitmae.models.objective import training_flops

    file = job.place / "config.yaml"
    settings = saved_settings(read_yaml(file), file, trust)
    devices = read_json(job.place / "environment.json").get("devices")
    if not isinstance(devices, list) or not devices:
        raise UserError(f"{job.place}/environment.json is damaged: it names no devices; remove the run to repeat it")
    processes = len(devices) * settings["trainer"]["num_nodes"]
    images = settings["data"]["batch_size"] * processes * settings["trainer"]["accumulate_grad_batches"]
    with open(job.place / "metrics.csv") as table:
        images *= max(int(line["step"]) for line in csv.DictReader(table))
    channels = settings["data"]["in_chans"]
    model = dict(settings["model"])
    if "num_classes" in model and model["num_classes"] is None:
        model["num_classes"] = _num_classes(job.place)
    with torch.device("meta"):
        backbone = build({**settings["backbone"], "img_size": list(pair(settings["data"]["img_size"]))})
        objective = build(model, backbone=backbone, mean=[0.5] * channels, std=[0.5] * channels)
    trained = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
    return Cost(images, images * float(training_flops(objective)), seconds_of(job, folder), trained)


def _num_classes(run: Path) -> int:
    """The number of classes of a run that took it from the data; reads no tensor but the head of an older run."""
    file = run / "checkpoints" / "last.ckpt"
    if not file.is_file():  # deleted to free space: count the head as if it had one class
        return 1
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        known = content.get("vitmae_facts", {}).get("num_classes")
        return int(known) if known else len(content["state_dict"]["head.bias"])
    except Exception as error:  # bytes that are not a pickle raise a dozen kinds of errors
        raise UserError(
            f"{file} is damaged ({first_line(error)}): remove the run, and the comparison repeats it"
        ) from error


def curve(run: Path) -> dict[str, list[tuple[float, float]]]:
    """The validation metrics of a run: name -> (epoch, value) pairs; the first epoch is 1."""
    points: dict[str, list[tuple[float, float]]] = {}
    epoch = 0.0
    with open(run / "metrics.csv") as table:
        for line in csv.DictReader(table):
            if line.get("epoch"):
                epoch = float(line["epoch"])
            for name, value in line.items():
                if name.startswith("val/") and value:
                    points.setdefault(name, []).append((epoch + 1, float(value)))
    return points
