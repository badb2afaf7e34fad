"""How trials get their parameters: in range, repeatable, and with TPE better than by chance."""

from __future__ import annotations

import math
import statistics
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharmclf.config import RunConfig
from pharmclf.tuning.search import STARTUP, ObservedTrial, Search, SearchName
from pharmclf.tuning.space import Parameter, Space, Value
from pharmclf.tuning.space_file import build_space

FLOATS = ("phase1.learning_rate", "head.dropout", "optimizer.weight_decay")
INTS = ("unfreeze_blocks", "batch_size")
WHOLE = build_space(
    {
        "phase1.learning_rate": {"low": 1e-4, "high": 1e-2, "scale": "log", "points": 3},
        "head.dropout": {"low": 0.0, "high": 0.5, "points": 3, "when": {"unfreeze_blocks": {"low": 1}}},
        "unfreeze_blocks": {"low": 0, "high": 3},
        "backbone": {"values": ["efficientnet_lite0", "resnet50"]},
    },
    RunConfig(),
    "test",
)
_either: st.SearchStrategy[Any] = st.booleans()
_slow = settings(deadline=None, max_examples=60)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Ranges and values of every kind, with conditions."""
    found: list[Parameter] = []
    for name in draw(st.lists(st.sampled_from([*FLOATS, *INTS, "backbone"]), min_size=1, max_size=5, unique=True)):
        when: dict[str, tuple[float, float]] = {}
        free = [other for other in found if not other.when and other.name != "backbone"]
        if free and draw(_either):
            edges = st.sampled_from([-math.inf, 0.0, 0.01, 0.3, 1.0, 3.0, math.inf])
            one, other = draw(edges), draw(edges)
            when = {draw(st.sampled_from(free)).name: (min(one, other), max(one, other))}
        numbers: Any = st.integers(1, 64) if name in INTS else st.floats(1e-6, 0.9)
        if name == "backbone" or draw(_either):
            choices = st.sampled_from(["resnet50", "vgg16", "xception"]) if name == "backbone" else numbers
            values = tuple(draw(st.lists(choices, min_size=1, max_size=3, unique=True)))
            found.append(Parameter(name=name, values=values, when=when))
        else:
            low, high = sorted((draw(numbers), draw(numbers)))
            log, points = draw(_either), draw(st.integers(1, 3))
            found.append(Parameter(name=name, low=low, high=high, log=log, points=points, when=when))
    return Space(tuple(sorted(found, key=lambda parameter: bool(parameter.when))))


def fits(space: Space, values: dict[str, Value]) -> bool:
    """Whether exactly those parameters have a value that count, and it is one they can have."""
    for parameter in space.parameters:
        counts = all(low <= float(values[name]) <= high for name, (low, high) in parameter.when.items())
        if counts != (parameter.name in values):
            return False
        if not counts:
            continue
        value = values[parameter.name]
        if parameter.values:
            fine = value in parameter.values
        else:
            fine = parameter.low <= float(value) <= parameter.high and isinstance(value, int) == parameter.is_whole
        if not fine:
            return False
    return set(values) <= {parameter.name for parameter in space.parameters}


def chosen(search: Search, total: int, score: Any) -> list[ObservedTrial]:
    """Trials one after the other, each knowing those before it."""
    known: list[ObservedTrial] = []
    for number in range(1, total + 1):
        values = search.propose(number, known)
        known.append(ObservedTrial(values, score(values), True))
    return known


@_slow
@given(spaces(), st.sampled_from(["tpe", "random", "grid"]), st.integers(0, 2**31 - 1), st.data())
def test_every_proposal_lies_in_its_space(space: Space, name: SearchName, seed: int, data: st.DataObject):
    """Values in their ranges, whole numbers whole, conditions held, before and behind TPE's start."""
    search = Search(name, space, seed)
    scores = st.floats(0, 1)
    numbers = [1, 2, 3] if name == "grid" else [1, 2, STARTUP, STARTUP + 1]
    known: list[ObservedTrial] = []
    for number in numbers:
        if number > search.max_trials:
            break
        values = search.propose(number, known)
        assert fits(space, values), values
        known.append(ObservedTrial(values, data.draw(scores), True))


@pytest.mark.parametrize("name", ["tpe", "random", "grid"])
@pytest.mark.parametrize("number", [1, 9, 10, 16])
def test_a_proposal_is_a_function_of_number_seed_and_what_is_known(name: SearchName, number: int):
    """A new search gives the same; it holds no state that a resumed sweep would lack."""
    known = chosen(Search("random", WHOLE, 5), number - 1, lambda values: float(values["phase1.learning_rate"]))
    first = Search(name, WHOLE, 7)
    values = first.propose(number, known)
    first.propose(number + 1, known)
    assert first.propose(number, known) == values == Search(name, WHOLE, 7).propose(number, list(known))


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_other_numbers_and_seeds_give_other_proposals(name: SearchName):
    """Of a number in a range, no two of a hundred are the same."""
    space = Space((Parameter(name="head.dropout", low=0, high=0.5),))
    values = [
        Search(name, space, seed).propose(number, [])["head.dropout"] for seed in (0, 1) for number in range(1, 51)
    ]
    assert len(set(values)) == 100


def test_random_proposals_fill_their_range_evenly():
    """By factors where the scale is log: as many below the middle of the exponents as above."""
    space = Space((Parameter(name="phase1.learning_rate", low=1e-4, high=1e-2, log=True),))
    values = [Search("random", space, 0).propose(number, [])["phase1.learning_rate"] for number in range(1, 401)]
    for share in (0.25, 0.5, 0.75):
        below = sum(float(value) < 10 ** (-4 + 2 * share) for value in values) / 400
        assert below == pytest.approx(share, abs=0.08)


def test_random_search_and_the_start_of_tpe_look_at_nothing():
    """What others have shown changes no proposal; from `STARTUP` on TPE's."""
    known = chosen(Search("random", WHOLE, 5), 12, lambda values: float(values["phase1.learning_rate"]))
    random, tpe = Search("random", WHOLE, 3), Search("tpe", WHOLE, 3)
    for number in range(1, STARTUP):
        assert not tpe.depends_on_others(number)
        assert random.propose(number, known) == random.propose(number, []) == tpe.propose(number, known)
    assert tpe.depends_on_others(STARTUP)
    assert not random.depends_on_others(STARTUP)
    assert random.propose(STARTUP, known) == random.propose(STARTUP, [])
    assert tpe.propose(STARTUP, known) != tpe.propose(STARTUP, [])


def test_tpe_finds_better_values_than_chance():
    """A hill over rate and dropout, 30 trials: mean and best of those behind the start, in the mean over five seeds."""
    space = Space(
        (
            Parameter(name="phase1.learning_rate", low=1e-5, high=1e-1, log=True),
            Parameter(name="head.dropout", low=0, high=0.9),
        )
    )

    def hill(values: dict[str, Value]) -> float:
        exponent, dropout = math.log10(float(values["phase1.learning_rate"])), float(values["head.dropout"])
        return 1 - ((exponent + 3.5) / 4) ** 2 - (dropout - 0.3) ** 2

    def late(name: SearchName, seed: int) -> list[float]:
        trials = chosen(Search(name, space, seed), 30, hill)[STARTUP:]
        return [score for trial in trials if (score := trial.score) is not None]

    tpe, random = ([late("tpe", seed) for seed in range(5)], [late("random", seed) for seed in range(5)])
    assert statistics.mean(map(statistics.mean, tpe)) > statistics.mean(map(statistics.mean, random)) + 0.05
    assert statistics.mean(map(max, tpe)) > statistics.mean(map(max, random))


@st.composite
def known_trials(draw: st.DrawFn, space: Space) -> list[ObservedTrial]:
    """Trials that have ended, failed, run, or lie outside of the space as the plain run may."""
    found = []
    for number in range(1, draw(st.integers(0, 12)) + 1):
        values = Search("random", space, 1).propose(number, [])
        if draw(st.booleans()):
            name = draw(st.sampled_from(sorted(values)))
            values[name] = "densenet121" if name == "backbone" else draw(st.sampled_from([0, 0.0, 1e6, 100, -1]))
        score = draw(st.none() | st.floats(0, 1) | st.sampled_from([0.0, math.nan]))
        ended = draw(st.booleans())
        found.append(ObservedTrial(values, score if ended else None, ended))
    return found


@_slow
@given(spaces(), st.integers(STARTUP, 40), st.data())
def test_tpe_never_fails_with_what_it_knows(space: Space, number: int, data: st.DataObject):
    """Whatever the other trials have come to, it proposes something in its space."""
    known = data.draw(known_trials(space))
    assert fits(space, Search("tpe", space, 0).propose(number, known))


@pytest.mark.parametrize("low", [1e-6, 0.5])
def test_a_range_of_two_neighbouring_numbers_can_be_searched(low: float):
    """Their logarithms may be the same number."""
    space = Space((Parameter(name="head.dropout", low=low, high=math.nextafter(low, 1), log=True),))
    known = [ObservedTrial({"head.dropout": low}, number / 20, True) for number in range(STARTUP)]
    assert fits(space, Search("tpe", space, 0).propose(STARTUP, known))


def test_what_failed_or_lies_outside_teaches_nothing():
    """The proposal is that without them."""
    search = Search("tpe", WHOLE, 0)
    known = chosen(Search("random", WHOLE, 5), 12, lambda values: float(values["phase1.learning_rate"]))
    inside: dict[str, Value] = {"phase1.learning_rate": 1e-3, "unfreeze_blocks": 0, "backbone": "resnet50"}
    ignored = [
        ObservedTrial(inside, None, True),
        ObservedTrial(inside | {"phase1.learning_rate": 0.5}, 1.0, True),
        ObservedTrial(inside | {"phase1.learning_rate": 0}, 1.0, True),
        ObservedTrial(inside | {"unfreeze_blocks": 9}, 1.0, True),
        ObservedTrial(inside | {"backbone": "vgg16"}, 1.0, True),
    ]
    assert search.propose(20, [*known, *ignored]) == search.propose(20, known)
    assert search.propose(20, [*known, ObservedTrial(inside, 1.0, True)]) != search.propose(20, known)


def test_a_running_trial_keeps_others_away():
    """Proposals that are made at once do not crowd at one place: those that run count as bad for the moment."""
    space = Space((Parameter(name="head.dropout", low=0, high=0.9),))
    known = [ObservedTrial({"head.dropout": value / 20}, 1 - abs(value / 20 - 0.3), True) for value in range(1, 18)]
    runs = [ObservedTrial({"head.dropout": 0.3 + value / 1000}, None, False) for value in range(-5, 6)]

    def near(trials: list[ObservedTrial]) -> int:
        values = [Search("tpe", space, seed).propose(30, trials)["head.dropout"] for seed in range(40)]
        return sum(abs(float(value) - 0.3) < 0.02 for value in values)

    assert near([*known, *runs]) < near(known)


def test_a_proposal_says_nothing():
    """Neither a log line nor a warning of Optuna's, though an option of it counts as experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Search("tpe", WHOLE, 0).propose(STARTUP, [])


@given(spaces())
def test_a_grid_gives_each_combination_once(space: Space):
    """Trials 1 to the last are the combinations, in their order, none twice."""
    search = Search("grid", space, 0)
    proposals = [search.propose(number, []) for number in range(1, int(search.max_trials) + 1)]
    assert proposals == list(space.grid())
    assert len({tuple(sorted(values.items())) for values in proposals}) == len(proposals)


def test_there_are_no_more_trials_than_a_grid_has():
    """Every combination once; the other searches have no end."""
    grid = Search("grid", WHOLE, 0)
    assert grid.max_trials == 3 * 2 * (1 + 3 * 3)  # without dropout where nothing is unfrozen
    assert Search("tpe", WHOLE, 0).max_trials == math.inf
