"""One check for settings and for callers from Python: what an annotation allows, and what is said of the rest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Le, MinLen
from pydantic import Field

from vitmae.errors import UserError
from vitmae.limits import Text, check_arguments, check_value

Share = Annotated[float, Gt(0), Le(1)]
Count = Annotated[int, Ge(1)]


class Named(Protocol):
    name: str


@pytest.mark.parametrize(
    ("value", "annotation", "words"),
    [
        (2, Share, "> 0 and ≤ 1"),
        (2, Annotated[float, Field(gt=0, le=1)], "> 0 and ≤ 1"),
        (0, Share, "> 0 and ≤ 1"),
        (float("nan"), Share, "> 0 and ≤ 1"),
        ("abc", Share, "a number"),
        (True, Share, "a number"),
        (-1, Share | None, "> 0 and ≤ 1 or null"),
        (0, Count | Literal["auto"], "≥ 1 or auto"),
        ("many", Count | Literal["auto"], "a whole number or auto"),
        (1.5, Count, "a whole number"),
        ([], Annotated[Sequence[Count], MinLen(1)], "of length ≥ 1"),
        ([0, 5], Annotated[Sequence[Count], MinLen(1)], "a list, each a whole number ≥ 1"),
        ([0.5], tuple[Share, Share], "a list of 2, each a number > 0 and ≤ 1"),
        ("diag", Literal["random", "block"], "random or block"),
        ("diag", Literal["random", "block", "grid"], "random, block or grid"),
    ],
)
def test_a_value_outside_its_annotation_is_one_line_with_its_name_and_what_it_must_be(value, annotation, words):
    with pytest.raises(UserError) as error:
        check_value("data.setting", value, annotation)
    assert str(error.value).startswith("data.setting=")
    assert str(error.value).endswith(f": must be {words}")


@pytest.mark.parametrize(
    ("value", "annotation", "said"),
    [
        (b"run", str | Path, "path: it is of type bytes: must be a text or a path"),
        (object(), Share, "path: it is of type object: must be a number"),
        (torch.zeros(1), Count, "path: it is of type Tensor: must be a whole number"),
        ("adamw", torch.nn.Module, "path=adamw: must be a Module"),
        (None, torch.nn.Module, "path=null: must be a Module"),
        ("digits", Named, "path=digits: must be a Named"),
        ("", Text, "path=: must be a text that is not empty"),
        ([], Text, "path=[]: must be a text"),
        (float("inf"), Annotated[float, Ge(0)], "path=Infinity: must be finite and ≥ 0"),
        ([1.0, float("nan")], Sequence[float], "path=[1.0, NaN]: must be finite and a list, each a number"),
    ],
)
def test_what_no_setting_can_be_is_refused_by_its_type(value, annotation, said):
    with pytest.raises(UserError) as error:
        check_value("path", value, annotation)
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1, Share),
        (None, Share | None),
        ("auto", Count | Literal["auto"]),
        ([0.2, 1], tuple[Share, Share]),
        ((0.2, 1), tuple[Share, Share]),
        (np.float32(0.5), Share),
        (np.int64(3), Count),
        (torch.nn.Identity(), torch.nn.Module),
        (None, torch.nn.Module | None),
        ([torch.zeros(1)], Sequence[torch.Tensor]),  # pydantic does not know the type
        (object(), Named),  # only a type checker can tell
    ],
)
def test_what_an_annotation_allows_passes(value, annotation):
    check_value("data.setting", value, annotation)


@check_arguments("part")
@dataclass(frozen=True)
class Part:
    share: Share = 1.0


class Whole:
    @check_arguments("whole")
    def __init__(self, count: Count, *, share: Share = 1.0) -> None:
        self.count = count


@check_arguments()
def command(count: Count = 1) -> int:
    return count


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Part(2), "part.share=2: must be > 0"),
        (lambda: replace(Part(), share=0), "part.share=0: must be > 0"),
        (lambda: Whole(0), "whole.count=0: must be ≥ 1"),
        (lambda: Whole(1, share=2), "whole.share=2: must be > 0"),
        (lambda: command(count=0), "count=0: must be ≥ 1"),
    ],
)
def test_a_caller_from_python_gets_the_line_that_a_config_gets(call, words):
    with pytest.raises(UserError) as error:
        call()
    assert str(error.value).startswith(words)


def test_arguments_within_their_limits_arrive():
    assert (Part(0.5).share, Whole(3).count, command(4)) == (0.5, 3, 4)
