"""The names of the probes; importing this file is fast."""

from typing import Literal

ProbeName = Literal["knn", "linear", "logistic", "fewshot", "attentive", "dense", "collapse", "classifier"]
