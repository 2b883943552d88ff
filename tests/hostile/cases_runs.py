"""Trained runs and files that are damaged, and what evaluate, embed, reconstruct and export are asked of a good one."""

from pathlib import Path

from tests.hostile.case import TINY, Case
from tests.hostile.cases_settings import words


def missing(file):
    file.unlink()


def empty(file):
    file.write_bytes(b"")


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def a_list(file):
    file.write_text("[1, 2]\n")


def a_number(file):
    file.write_text("3\n")


def binary(file):
    file.write_bytes(bytes(range(256)) * 4)


def a_directory(file):
    file.unlink()
    file.mkdir()


def damaged(name, how):
    """A function that damages a file of the run; its checkpoints are one file under two names."""

    def damage(folder: Path) -> None:
        file = folder / "runs" / "mae" / name
        if file.name == "last.ckpt":
            (file.parent / "best.ckpt").unlink()
        how(file)

    return damage


RESUME = ("ckpt={run}", "trainer.max_steps=3")
LAST = ("ckpt=last", "trainer.max_steps=3")
USES = {
    "evaluate": ("evaluate", ("ckpt={run}", "probe=knn", "limit=50")),
    "embed": ("embed", ("ckpt={run}", "images=photos", "num_workers=0")),
    "reconstruct": ("reconstruct", ("ckpt={run}", "images=photos", "num_workers=0")),
    "export": ("export", ("ckpt={run}",)),
    "weights": ("train", ("trainer=cpu", "logger=none", "backbone.weights={run}")),
}
CASES = [
    *(
        Case(
            f"{name}: config.yaml is {how.__name__}",
            "train",
            given,
            damaged("config.yaml", how),
            says=("damaged",),
            is_slow=name == "last" and how is not empty,
        )
        for name, given in (("resume", RESUME), ("last", LAST))
        for how in (empty, cut, a_list, a_number, binary)
    ),
    *(
        Case(
            f"{name}: summary.json is {how.__name__}",
            "train",
            given,
            damaged("summary.json", how),
            says=("summary.json", "must be a file" if how is a_directory else "restore it, or remove it"),
            is_slow=name == "last" and how is not empty,
        )
        for name, given in (("resume", RESUME), ("last", LAST))
        for how in (empty, cut, a_list, a_number, binary, a_directory)
    ),
    *(
        Case(
            f"{name}: the checkpoint is {how.__name__}",
            command,
            given,
            damaged("checkpoints/last.ckpt", how),
            says=("mae",),
            writes=("runs",),
            is_slow=name in ("reconstruct", "export") and how not in (missing, cut),  # embed reads the same way
        )
        for name, (command, given) in {"resume": ("train", RESUME), **USES}.items()
        for how in (missing, empty, cut, a_list, binary, a_directory)
    ),
    Case("resume: commands.txt is binary", "train", RESUME, damaged("commands.txt", binary), ends=0, is_slow=True),
    Case("resume: effects.txt is cut", "train", RESUME, damaged("effects.txt", cut), ends=0, is_slow=True),
    Case("resume: summary.json is missing", "train", RESUME, damaged("summary.json", missing), ends=0),
    Case("resume: config.yaml is missing", "train", RESUME, damaged("config.yaml", missing), ends=0, is_slow=True),
    *(
        Case(
            f"resume: {name} is a folder",
            "train",
            RESUME,
            damaged(name, a_directory),
            ends=1,
            says=(name, "move it"),
            is_slow=True,
        )
        for name in ("commands.txt", "effects.txt", "environment.json", "metrics.csv")
    ),
    Case(
        "train: below a device", "train", (*TINY, "hydra.run.dir=/dev/null/x"), ends=1, says=("/dev/null/x", "move it")
    ),
    *(
        Case(f"{command}: ckpt={label}", command, (f"ckpt={ckpt}", *more), says=("there is no such",))
        for label, ckpt in {"~nobody": "'~nobody-of-that-name'", "a name that is too long": "n" * 300}.items()
        for command, more in {"train": (), "evaluate": (), "export": (), "embed": ("images=photos",)}.items()
    ),
    *words(
        "evaluate",
        ((), "ckpt must be given"),
        ("ckpt=", "ckpt= is empty"),
        ("ckpt=nope", "nope: there is no such file"),
        (("ckpt=last", "runs=nope"), "no run below nope has a last.ckpt"),
        *(
            (("ckpt={run}", *given.split()), says)
            for given, says in {
                "probe=": "probe=: must be all or knn",
                "probe=[]": "name at least one probe, or all",
                "probe=knnn": "must be all or knn",
                "probe=[knn,nope]": "must be all or knn",
                "probe=null": "must be all or knn",
                "probe=knn linear.epochs=50": "linear.epochs=50 has no effect: linear is not among the probes that run",
                "probe=[knn] fewshot.l2=1": "fewshot.l2=1 has no effect",
                "probe=knn knn.ks=[]": "knn.ks=[]: must be of length ≥ 1",
                "probe=knn knn.ks=[0]": "knn.ks=[0]: must be a list, each a whole number ≥ 1",
                "probe=knn knn.ks=5": "knn.ks=5: must be a list",
                "probe=knn knn.temperature=0": "knn.temperature=0: must be > 0",
                "probe=knn knn=null": "knn=None: must be a mapping with _target_",
                "probe=knn ~knn": "missing a required argument: 'knn'",
                "probe=linear linear.epochs=0": "linear.epochs=0: must be ≥ 1",
                "probe=linear linear.warmup_epochs=90": "must be < linear.epochs=90",
                "probe=linear linear.base_lrs=[inf]": "must be finite",
                "probe=fewshot fewshot.seeds=[-1]": "must be a list, each a whole number ≥ 0",
                "probe=logistic logistic.val_fraction=1": "must be > 0 and < 1",
                "probe=dense": "probe=dense needs the class of every pixel",
                "probe=knn encoder=x": "must be trained, untrained or both",
                "probe=knn split=train": "must be val or test or null",
                "probe=knn limit=0": "limit=0: must be ≥ 1 or null",
                "probe=knn token_images=0": "token_images=0: must be ≥ 1 or null",
                "probe=knn seed=-1": "seed=-1: must be ≥ 0",
                "probe=knn precision=fp7": "must be auto, 32-true or bf16-mixed",
                "probe=knn device=tpu9": "device=tpu9",
                "probe=knn device=meta": "device=meta holds no numbers",
                "probe=knn features=": "features=: must be a text that is not empty",
                "probe=knn out=": "out=: must be a text that is not empty",
                "probe=knn out=x.txt": "the name must end in .json",
                "probe=knn trust=x": "must be a list of full names",
                "probe=knn +foo=bar": "unknown setting foo",
                "probe=knn +knn.foo=bar": "unknown setting knn.foo",
                "probe=knn data=nope": "unknown choice data=nope",
                "probe=knn data=0": "data=0: must be one choice",
                "probe=knn data.batch_size=0": "data.batch_size=0: must be ≥ 1",
                "probe=knn data.in_chans=3": "was trained on 1 channels",
                "probe=knn data=folder": "data.path is not set",
            }.items()
        ),
    ),
    *(
        Case(f"evaluate: {given}", "evaluate", ("ckpt={run}", *given.split()), says=(says,), writes=("runs",))
        for given, says in {
            "probe=knn knn.ks=[100000] limit=50": "k must be ≥ 1 and ≤ 50",
            "probe=fewshot fewshot.shots=[100000] limit=50": "must be ≤ 5",
            "probe=attentive attentive.num_heads=7 limit=50": "num_heads must be a divisor",
            "probe=classifier": "fine-tune it with model=vit",
        }.items()
    ),
    *words(
        "embed",
        *(
            (("ckpt={run}", *given.split()), says)
            for given, says in {
                "": "images must be given",
                "images=": "images=: must be a text that is not empty",
                "images=nope": "images=nope does not exist",
                "images=photos out=": "out=: must be a text that is not empty",
                "images=photos out=x.csv": "the name must end in .parquet",
                "images=photos batch_size=0": "batch_size=0: must be ≥ 1",
                "images=photos num_workers=-1": "num_workers=-1: must be ≥ 0",
                "images=photos pooling=patches": "must be cls or avg or null",
                "images=photos on_error=x": "must be raise or skip",
                "images=photos device=x": "device=x",
                "images=photos +foo=bar": "unknown setting foo",
            }.items()
        ),
    ),
    *words(
        "reconstruct",
        *(
            (("ckpt={run}", "images=photos", *given.split()), says)
            for given, says in {
                "mask=2": "mask=2: must be a ratio between 0 and 1",
                "mask=-1": "must be a ratio between 0 and 1",
                "mask=nan": "must be finite",
                "mask=x": "must be a ratio, random, block, grid",
                "mask=": "mask=: must be a number or a text that is not empty",
                "mask=true": "mask=true: must be a number",
                "mask=0": "leaves no hidden patch",
                "mask=1": "leaves no visible patch",
                "passes=0": "passes=0: must be ≥ 2",
                "passes=99": "passes=99: must be between 2 and 16",
                "passes=2 mask=0.5": "exclude each other",
                "panels=-1": "panels=-1: must be ≥ 0",
                "out=": "out=: must be a text that is not empty",
                "out=photos": "is there already",
                "seed=-1": "seed=-1: must be ≥ 0",
                "ckpt=vit": "has no trained decoder",
            }.items()
        ),
    ),
    *words(
        "export",
        *(
            (("ckpt={run}", given), says)
            for given, says in {
                "format=x": "format=x: must be bundle, timm",
                "what=x": "what=x: must be encoder or full",
                "out=": "out=: must be a text that is not empty",
                "out=photos": "is there already",
                "push=": "push=: must be a text that is not empty",
                "push=x": "push=x: must be USER/REPO",
                "+foo=bar": "unknown setting foo",
            }.items()
        ),
        (("ckpt={run}", "push=a/b", "format=timm"), "leave out format=timm"),
        ("ckpt=photos", "photos: there is no checkpoint, run directory or bundle"),
    ),
]
