"""When a run evaluates, saves and cuts its dispatches: at the steps nearest to whole epochs, the same from wherever it goes on."""

import pytest

from jaxtrain.engine.loop import Rhythm


def rhythm(evaluate: float, save: float = 0, *, end: int, first: int = 0, call: int = 20) -> Rhythm:
    return Rhythm(first, end, evaluate, save, 100, call, first)


def boundaries(due: Rhythm, step: int) -> list[int]:
    found = []
    while step < due.end:
        step = due.next_boundary(step, ())
        found.append(step)
    return found


@pytest.mark.parametrize("first", [0, 1000])
def test_epochs_that_are_no_whole_number_of_steps_are_met_to_the_nearest_step(first: int) -> None:
    due = rhythm(425.375, end=first + round(2 * 425.375), first=first)
    evaluations = [step - first for step in range(first + 1, due.end + 1) if due.evaluates(step)]
    assert evaluations == [425, 851]  # and not also at 850, twice 425
    longer = rhythm(10.4, end=first + 1040, first=first)
    evaluations = [step - first for step in range(first + 1, longer.end + 1) if longer.evaluates(step)]
    assert evaluations == [round(10.4 * k) for k in range(1, 101)]


@pytest.mark.parametrize(("evaluate", "save"), [(425.375, 100.3), (1, 0), (1.5, 2.5), (7, 3.2), (33.0, 1e9)])
def test_dispatches_end_at_every_event_and_a_resumed_run_cuts_them_alike(evaluate: float, save: float) -> None:
    due = rhythm(evaluate, save, end=900)
    whole = boundaries(due, 0)
    assert whole == sorted(set(whole)) and whole[0] == 1 and whole[-1] == 900
    events = {step for step in range(1, 901) if due.evaluates(step) or due.saves(step)}
    assert events <= set(whole)
    assert all(b - a <= due.call for a, b in zip([0, *whole], whole, strict=False))
    for step in sorted(events)[::7]:
        assert boundaries(due, step) == [at for at in whole if at > step]
