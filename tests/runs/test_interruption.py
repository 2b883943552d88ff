from types import SimpleNamespace

import pytest

from vitmae.runs.interruption import Interruption


class TwoRanks:
    """As Lightning's strategies decide, with another rank of which we know what it says."""

    def __init__(self, other):
        self.other = other

    def reduce_boolean_decision(self, decision, all=True):
        return (decision and self.other) if all else (decision or self.other)


@pytest.mark.parametrize("here", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_all_ranks_stop_if_one_of_them_was_asked_to(here, there):
    interruption = Interruption()
    interruption.is_requested = here
    assert interruption.is_agreed(SimpleNamespace(strategy=TwoRanks(there))) is (here or there)
