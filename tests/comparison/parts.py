"""A comparison whose jobs are stand-ins that leave what real ones leave."""

import json

import torch

from vitmae.comparison.plan import SCRATCH, Design, Method, plan
from vitmae.evaluation.scores import Score, write_scores

DIGITS_BACKBONE = {
    "_target_": "vitmae.backbones.timm_vit.TimmViT",
    "name": "vit_tiny_patch16_224",
    "img_size": [8, 8],
    "in_chans": 1,
    "patch_size": 2,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
}
TARGETS = {
    "mae": "vitmae.models.mae.MAE",
    "vit": "vitmae.models.supervised.Supervised",
    "masked_patch": "vitmae.models.masked_patch.MaskedPatch",
}


def design(**changed):
    settings = {
        "out": "c",
        "methods": ["scratch", "mae"],
        "seeds": [0, 1],
        "labels": 0.1,
        "probes": ["knn"],
        "base_lrs": [],
        "train": [],
        "pretrain": [],
        "own": {},
        "finetune": [],
        "scratch": [],
        "evaluate": [],
    }
    return Design(**(settings | changed))


def finish(job, accuracy=0.5, steps=10, best=None, split="test"):
    """Leave what a job leaves when it has done its work."""
    if job.command_name == "evaluate":
        scores = (
            [
                Score("trained", "classifier", "avg", "accuracy", accuracy, 400, (0.4, 0.6)),
            ]
            if job.stage == "classifier"
            else [
                Score("trained", "knn", "avg", "accuracy", accuracy, 400, (0.4, 0.6), {"k": 5.0}, is_chosen=True),
                Score("trained", "knn", "avg", "accuracy", 0.99, 400, (0.4, 0.6), {"k": 1.0}),
                Score(
                    "trained", "fewshot", "cls", "accuracy", accuracy / 2, 400, (0.1, 0.3), {"shots": 5.0, "l2": 1024.0}
                ),
                Score("trained", "collapse", "avg", "RankMe", 7.0, 400),
            ]
        )
        write_scores(job.place, scores, {"split": split})
        return
    model = next(override.removeprefix("model=") for override in job.overrides if override.startswith("model="))
    (job.place / "figures").mkdir(parents=True)
    node = {"_target_": TARGETS[model], "optimizer": {"_target_": "vitmae.recipe.Recipe"}}
    node |= {"num_classes": None} if model == "vit" else {}
    config = {
        "model": node,
        "backbone": DIGITS_BACKBONE,
        "trainer": {"num_nodes": 1, "accumulate_grad_batches": 2},
        "data": {"batch_size": 64, "in_chans": 1, "img_size": 8},
    }
    (job.place / "config.yaml").write_text(json.dumps(config))
    (job.place / "environment.json").write_text(json.dumps({"devices": ["cpu", "cpu"]}))
    (job.place / "checkpoints").mkdir()
    torch.save({"state_dict": {"head.bias": torch.zeros(7)}}, job.place / "checkpoints" / "last.ckpt")
    metric = "val/acc1" if model == "vit" else "val/loss"
    best = accuracy if best is None else best
    lines = [f"step,epoch,{metric}", "0,,", f"5,0,{best}", f"{steps},1,{best - 0.1}"]
    (job.place / "metrics.csv").write_text("\n".join(lines) + "\n")
    (job.place / "summary.json").write_text(json.dumps({"state": "finished"}))


METHODS = {
    method.name: method
    for method in (
        SCRATCH,
        Method("masked_patch", "masked patch prediction", "masked_patch"),
        Method("mae", "masked autoencoder", "mae"),
        Method("supervised", "supervised ViT", "vit", needs_labels=True),
    )
}


def planned(folder, own_code=(), **changed):
    made = design(**changed)
    return made, plan(made, [METHODS[name] for name in made.methods], folder, own_code)
