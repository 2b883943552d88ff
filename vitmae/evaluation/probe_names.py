"""The names of the probes, for the command lines that take them."""

from typing import Literal

Probe = Literal["knn", "linear", "logistic", "fewshot", "attentive", "dense", "collapse", "classifier"]
