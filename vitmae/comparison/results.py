"""The results of a comparison so far: scores, curves and what each run cost, read from the files of the runs."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vitmae.classes import check_classes
from vitmae.comparison.plan import Job, Row
from vitmae.comparison.runner import best_classifier, is_done, seconds_of
from vitmae.config import build
from vitmae.evaluation.scores import Score, read_scores
from vitmae.probes.confidence import mean_std, wilson_interval
from vitmae.tokens.patches import pair


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        probe: see `Score`; ``fine-tuning`` for the classifier.
        pooling: see `Score`; of the classifier, what its head reads.
        shots: of the few-shot probe; None for the others.
    """

    probe: str
    pooling: str
    shots: int | None = None

    @property
    def label(self) -> str:
        """For people."""
        name = {"knn": "kNN", "fewshot": f"{self.shots}-shot", "logistic": "logistic regression"}.get(
            self.probe, self.probe
        )
        return name if self.probe in ("fine-tuning", "attentive") else f"{name}, {self.pooling}"


@dataclass(frozen=True)
class Cell:
    """One method on one line: what its seeds reached on the test images.

    Attributes:
        per_seed: the accuracy of each seed that is done.
        num_images: that were scored.
        settings: what was chosen, for each seed.
    """

    per_seed: Mapping[int, float]
    num_images: int
    settings: Mapping[int, Mapping[str, float]]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return mean_std(list(self.per_seed.values()))[0]

    @property
    def std(self) -> float:
        """Over seeds, n - 1 in the denominator; nan for one."""
        return mean_std(list(self.per_seed.values()))[1]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % (Wilson) of the mean, over the draw of the test images alone."""
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
    """What the finished jobs of a comparison say.

    Attributes:
        titles: by method, in the order of the columns.
        table: by line and method.
        costs: by method and stage, one for each seed that is done.
        curves: by method and stage: metric -> for each seed, (epoch, value) pairs.
        pictures: by method, a reconstruction panel of its first seed.
        missing: names of the jobs that are not done.
        splits: which images were scored: test, or val of a set that has no test split.
    """

    titles: Mapping[str, str]
    table: Mapping[Line, Mapping[str, Cell]]
    costs: Mapping[tuple[str, str], Sequence[Cost]]
    curves: Mapping[tuple[str, str], Mapping[str, Sequence[Sequence[tuple[float, float]]]]]
    pictures: Mapping[str, Path]
    missing: Sequence[str]
    splits: frozenset[str]


def gather(rows: Sequence[Row], folder: Path, trust: Sequence[str] = ()) -> Results:
    """Read the results of the jobs that are done.

    Args:
        rows: the plan.
        folder: of the comparison.
        trust: classes that the settings of its runs may build beside those of `vitmae.classes`.
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
    """The line that a score belongs to; of kNN only the k that the validation images chose."""
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
    """What a finished training run took; its FLOPs are counted on a model without memory."""
    from omegaconf import OmegaConf

    from vitmae.models.objective import training_flops

    settings = OmegaConf.to_container(OmegaConf.load(job.place / "config.yaml"))
    assert isinstance(settings, dict)
    check_classes({part: settings[part] for part in ("model", "backbone")}, job.place / "config.yaml", trust)
    processes = len(json.loads((job.place / "environment.json").read_text())["devices"])
    processes *= settings["trainer"]["num_nodes"]
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
    """Of a run whose settings left it to the data: the rows of its head, without reading the rest of the file."""
    file = run / "checkpoints" / "last.ckpt"
    if not file.is_file():  # deleted since, to make room: then the head counts for one class
        return 1
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return len(content["state_dict"]["head.bias"])


def curve(run: Path) -> dict[str, list[tuple[float, float]]]:
    """Held-out metrics of a run: name -> (epoch, value) pairs; epochs are counted from 1."""
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
