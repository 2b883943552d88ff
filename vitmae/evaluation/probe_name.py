"""The names of the probes, and what a probe is; importing this file is fast."""

from typing import Any, Literal, Protocol

ProbeName = Literal["knn", "linear", "logistic", "fewshot", "attentive", "dense", "collapse", "classifier"]


class Probe(Protocol):
    """A probe with its settings, see `vitmae.evaluation.probes`."""

    def run(self, data: Any) -> list[Any]:
        """The scores on a `vitmae.evaluation.probe_data.ProbeData`."""
