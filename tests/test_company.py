"""The guess whether requests come together: right for any number of callers."""

import pytest

from runtime.company import LOOK_SELDOM, Company


class Turns:
    """A loop whose turns bring so many requests each, all of different models."""

    def __init__(self, callers: int) -> None:
        self.callers = callers
        self.ends: list = []
        self.company = Company(self.ends.append)

    def pass_by(self, calls: int) -> None:
        """One turn; what waits for its end takes so many calls."""
        company = self.company
        for _ in range(self.callers):
            if not company.expected:
                company.alone()
        ends, self.ends[:] = list(self.ends), []
        for looked in ends:
            looked()
        if company.expected:
            company.turned(self.callers, calls)


@pytest.mark.parametrize("callers", range(2, 130))
def test_callers_who_come_together_are_seen_to(callers) -> None:
    """Also those whose number divides that of the requests between two looks: each look
    would fall on the last of them, after which none comes."""
    turns = Turns(callers)
    for _ in range(20):  # nobody shares a call: they are looked at less and less
        turns.pass_by(callers)
    asked = 0
    while not turns.company.expected:
        turns.pass_by(1)
        asked += callers
        assert asked <= 4 * LOOK_SELDOM, "they are not seen to come together"


def test_a_caller_who_is_alone_stays_so() -> None:
    turns = Turns(1)
    for _ in range(5 * LOOK_SELDOM):
        turns.pass_by(1)
        assert not turns.company.expected
