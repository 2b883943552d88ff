"""A model card: the hub's metadata, what a model is, how it was made and how it is used."""

import json
from collections.abc import Mapping
from typing import Any

from vitmae.weights.translation import is_commercial


def model_card(about: Mapping[str, Any]) -> str:
    """The text of README.md.

    Args:
        about: the content of a bundle's model.json.
    """
    architecture, is_encoder = about["architecture"], about["what"] == "encoder"
    title = f"{architecture['name']}, {about['title']}" + (", encoder only" if is_encoder else "")
    height, width = architecture["img_size"]
    facts = {
        "objective": f"{about['title']} ({about['paper']})",
        "predicts": about["target"],
        "holds": "the encoder, without decoder or head" if is_encoder else "all that was trained",
        "images": f"{height} x {width} pixels, {architecture['in_chans']} channels, mean {_numbers(about['mean'])}, "
        f"std {_numbers(about['std'])} of pixels in [0, 1]",
        "patches": "{} x {} of {} x {} pixels".format(*architecture["grid_size"], *architecture["patch_size"]),
        "encoder": f"{architecture['depth']} blocks of width {architecture['embed_dim']}, {architecture['num_heads']} "
        f"heads, {architecture['parameters'] / 1e6:.1f} M parameters",
        "started from": about["initial_weights"] or "random weights",
        "code": f"vitmae at {about['git_commit']}" if about["git_commit"] else "vitmae",
    }
    parts = [
        _header(about),
        f"# {title}",
        "\n".join(f"- {name}: {text}" for name, text in facts.items()),
        "## Use",
        _use(about),
        "## Numbers",
        _metrics(about["metrics"]),
        "## Licence",
        _license(about["license"]),
        "## Settings",
        f"```json\n{json.dumps(about['config'], indent=2)}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(about: Mapping[str, Any]) -> str:
    """The hub's metadata in YAML; JSON values are YAML too."""
    classifies = about["published_as"] == "vit_classifier" and about["what"] == "full"
    host, _, number = about["paper"].rpartition("/")
    fields: dict[str, Any] = {
        "library_name": "vitmae",
        "pipeline_tag": "image-classification" if classifies else "image-feature-extraction",
        "tags": [
            "vitmae",
            "vision-transformer",
            about["title"].lower().replace(" ", "-"),
            *([f"arxiv:{number}"] if host == "https://arxiv.org/abs" else []),
        ],
    }
    if about["license"]:
        fields["license"] = about["license"]
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in fields.items()), "---"])


def _use(about: Mapping[str, Any]) -> str:
    lines = [
        "import vitmae",
        "",
        'model = vitmae.load("path/to/this/folder")',
        'vectors = model.encode(["photo.jpg"])           # one vector per image',
    ]
    if about["what"] == "full" and about["published_as"] == "vit_mae":
        lines.append('picture = model.reconstruct("photo.jpg", mask=0.75)')
    if about["what"] == "full" and about["published_as"] == "vit_classifier":
        lines.append('classes = model.predict(["photo.jpg"])')
    return "\n".join(["```python", *lines, "```"])


def _metrics(metrics: Mapping[str, float] | None) -> str:
    if not metrics:
        return "No metrics are saved with these weights."
    rows = [f"| {name} | {value:.5g} |" for name, value in sorted(metrics.items())]
    return "\n".join(["At the end of the run.", "", "| metric | value |", "|---|---|", *rows])


def _license(name: str | None) -> str:
    if name is None:
        return "Unknown: training started from random weights, or from weights whose licence is not known."
    warning = " It does not allow commercial use." if is_commercial(name) is False else ""
    return f"Training started from weights under {name}.{warning}"


def _numbers(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
