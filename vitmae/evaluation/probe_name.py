"""The names of the probes, for the command lines that take them."""

from typing import Literal

ProbeName = Literal["knn", "linear", "logistic", "fewshot", "attentive", "dense", "collapse", "classifier"]
