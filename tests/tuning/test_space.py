"""What a sweep may search: how it is written, what is refused and in which words, and what a trial makes of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pharmclf.config import AugmentConfig, ConfigError, RunConfig, load_yaml, to_dict
from pharmclf.config.presets import PRESETS, SPACES
from pharmclf.tuning import space as module
from pharmclf.tuning.space import STRENGTH, Parameter, Space, check_depths
from pharmclf.tuning.space_file import build_space, load_space

ROOT = Path(__file__).parents[2]
BASE = RunConfig()
DROPOUT = {"low": 0.0, "high": 0.5}
DEPTH = {"low": 0, "high": 4}
ONLY_IF_DEEP = {"unfreeze_blocks": {"low": 1}}


def built(base: RunConfig = BASE, /, **mapping: Any) -> Space:
    """A space; of a dotted name the dot is written as two underscores."""
    return build_space({name.replace("__", "."): about for name, about in mapping.items()}, base, "my.yaml")


def refusal(mapping: Any, base: RunConfig = BASE) -> str:
    with pytest.raises(ConfigError) as caught:
        build_space(mapping, base, "my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_files_of_the_project_fit_each_other():
    """The default space loads over the plain run, searches what the design names, and can be searched as a grid."""
    base = load_yaml(PRESETS / "sweep.yaml")
    space = load_space(SPACES / "default.yaml", base)
    names = {"phase1.learning_rate", "phase2.learning_rate", "head.dropout", "unfreeze_blocks"}
    assert {parameter.name for parameter in space.parameters} == names
    assert space.log_names == ("phase1.learning_rate", "phase2.learning_rate")
    check_depths(space, base, {"efficientnet_lite0": 16}, "default.yaml")
    assert len(list(space.grid())) == 3 * 3 * 3 * 5
    assert base.views > 0  # else nothing could be kept


def test_the_plain_run_of_the_project_lies_in_its_space():
    """Otherwise trial 0 would teach the search nothing."""
    base = load_yaml(PRESETS / "sweep.yaml")
    space = load_space(SPACES / "default.yaml", base)
    plain = space.values_of(base)
    assert all(parameter.low <= float(plain[parameter.name]) <= parameter.high for parameter in space.parameters)


def test_every_parameter_is_a_setting_of_a_run():
    """Each known name but the strength is a field, whose values in a plain run can be read and set."""
    for name, kind in module.KINDS.items():
        value = module._value_of(BASE, name)
        assert isinstance(value, {"float": float, "int": int, "choice": str}[kind])
        assert Space(()).config(BASE, {name: value}) == BASE


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"head.droput": DROPOUT}, "unknown parameter head.droput; did you mean head.dropout?"),
        ({"learning_rate": DROPOUT}, "did you mean phase"),
        ({"unfreeze_block": DEPTH}, "did you mean unfreeze_blocks?"),
        ({"zzzz": DROPOUT}, "unknown parameter zzzz; known here: phase1.learning_rate, "),
        ({3: DROPOUT}, "unknown parameter 3; known here: "),
        ({"seed": DEPTH}, "unknown parameter seed"),
        ({"head.dropout": {"low": 0, "hihg": 1}}, "unknown key head.dropout.hihg; did you mean high?"),
        ({"head.dropout": {**DROPOUT, "sclae": "log"}}, "unknown key head.dropout.sclae; did you mean scale?"),
        ({"head.dropout": {**DROPOUT, "xyz": 1}}, "unknown key head.dropout.xyz; known here: low, high, scale"),
        ({"head.dropout": {"low": 0, 7: 1}}, "unknown key head.dropout.7; known here: "),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest_known_one(mapping: Any, message: str):
    """Of a parameter and of what stands under it; where nothing is near, all are named."""
    assert message in refusal(mapping)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"low": 0.5, "high": 0.1}, "received low 0.5 above high 0.1: an empty range. Exchange them"),
        ({"low": 0, "high": 0.5, "scale": "log"}, "received low 0 with scale log, expected a low above 0"),
        ({"low": -1, "high": 0.5, "scale": "log"}, "expected a low above 0"),
        ({**DROPOUT, "scale": "exp"}, "scale: received 'exp', expected linear or log"),
        ({**DROPOUT, "scale": ["log"]}, "scale: received ['log'], expected linear or log"),
        ({"low": 0.1}, "high missing. Give low and high, or values"),
        ({"high": 0.1}, "low missing. Give low and high, or values"),
        ({}, "low and high missing"),
        ({"values": [0.1], "low": 0}, "expected values: a list, or low and high"),
        ({"values": [0.1], "points": 2}, "expected values: a list, or low and high"),
        ({"values": []}, "expected values: a list, or low and high"),
        ({"values": 0.1}, "expected values: a list, or low and high"),
        ({"values": [0.1, "x"]}, "values: received 'x', expected a number"),
        ({"values": [True]}, "values: received True, expected a number"),
        ({"values": [None]}, "values: received None, expected a number"),
        ({"low": math.nan, "high": 1}, "low: received nan, expected a number"),
        ({"low": 0, "high": math.inf}, "high: received inf, expected a number"),
        ({"low": "-inf", "high": 1}, "low: received '-inf', expected a number"),
        ({"low": 0, "high": 10**400}, "expected a number"),
        ({"low": 0, "high": [1]}, "high: received [1], expected a number"),
        ({"low": 0, "high": {}}, "high: received {}, expected a number"),
        ({**DROPOUT, "points": 1.5}, "points: received 1.5, expected a number of values from 1 to 1000"),
        ({**DROPOUT, "points": -1}, "points: received -1, expected a number of values"),
        ({**DROPOUT, "points": True}, "points: received True, expected a number of values"),
        ({**DROPOUT, "points": 10**9}, "expected a number of values from 1 to 1000"),
        ({"low": 0, "high": 2}, "head.dropout: received 2.0, expected a share from 0 to 0.95"),
        ({"values": [0.1, 0.99]}, "head.dropout: received 0.99, expected a share from 0 to 0.95"),
        (0.3, "received 0.3, expected low and high, or values"),
        ([0.1, 0.3], "received [0.1, 0.3], expected low and high, or values"),
        (None, "received None, expected low and high, or values"),
    ],
)
def test_a_range_that_is_none_is_refused(about: Any, message: str):
    """Each with the parameter's name, what was received, and what was expected or how to mend it."""
    told = refusal({"head.dropout": about})
    assert "head.dropout" in told
    assert message in told


@pytest.mark.parametrize(
    "about", [{"low": 0, "high": 2.5}, {"low": 0.1, "high": 3}, {"values": [1, 1.5]}, {"low": 0, "high": 1e12}]
)
def test_a_fraction_of_a_block_is_refused(about: Any):
    """Depths and batches are whole numbers, of a size that can be counted."""
    assert "unfreeze_blocks: received" in refusal({"unfreeze_blocks": about})
    assert "expected a whole number" in refusal({"unfreeze_blocks": about})


@pytest.mark.parametrize("mapping", [None, {}, [], "space", 3, ["head.dropout"]])
def test_what_holds_no_parameters_is_refused(mapping: Any):
    """An empty file among them."""
    assert "expected parameters with their ranges" in refusal(mapping)


@pytest.mark.parametrize(
    ("name", "remedy"), [("backbone", "values: [efficientnet_lite0, resnet50]"), (STRENGTH, "values: [0.5, 1.0]")]
)
def test_what_needs_other_activations_takes_values_only(name: str, remedy: str):
    """Of a range, every trial would have a pass over the images to itself."""
    assert "received a range, expected values" in refusal({name: {"low": 0.5, "high": 1.5}})
    assert remedy in refusal({name: {"low": 0.5, "high": 1.5}})


def test_an_unknown_backbone_is_refused_with_the_nearest():
    """As in a plain run."""
    assert "Did you mean resnet50?" in refusal({"backbone": {"values": ["efficientnet_lite0", "resnet_50"]}})


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ({"phase1.learning_rate": {"low": 0}}, "when: received 'phase1.learning_rate', expected a searched number"),
        ({"head.dropout": {"low": 0}}, "when: received 'head.dropout', expected a searched number that depends on"),
        ({"optimizer.weight_decay": {"low": 0}}, "expected a searched number that depends on nothing itself"),
        ({"backbone": {"low": 0}}, "when: received 'backbone', expected a searched number"),
        ({"zzz": {"low": 0}}, "when: received 'zzz', expected a searched number"),
        ({"unfreeze_blocks": {"lowest": 1}}, "when.unfreeze_blocks: received {'lowest': 1}, expected low, high or"),
        ({"unfreeze_blocks": {}}, "expected low, high or both"),
        ({"unfreeze_blocks": 1}, "when.unfreeze_blocks: received 1, expected low, high or both"),
        ({"unfreeze_blocks": {"low": "x"}}, "when.unfreeze_blocks.low: received 'x', expected a number"),
        ({"unfreeze_blocks": {"high": math.nan}}, "when.unfreeze_blocks.high: received nan, expected a number"),
        ({"unfreeze_blocks": {"low": 3, "high": 1}}, "received low 3 above high 1: an empty range"),
        (5, "when: received 5, expected parameters with low or high"),
        (["unfreeze_blocks"], "when: received ['unfreeze_blocks'], expected parameters with low or high"),
    ],
)
def test_a_condition_that_cannot_be_met_is_refused(when: Any, message: str):
    """On what is not searched, has no order, or depends on another itself; and one that is not written as a range."""
    mapping = {
        "head.dropout": {**DROPOUT, "when": when},
        "unfreeze_blocks": DEPTH,
        "backbone": {"values": ["resnet50"]},
        "optimizer.weight_decay": {"low": 0, "high": 0.1, "when": ONLY_IF_DEEP},
    }
    told = refusal(mapping)
    assert "head.dropout.when" in told
    assert message in told


def test_a_file_that_is_no_space_is_refused(tmp_path: Path):
    """Missing, a folder, not text, not YAML, a date that there is not: with the flag and the file's path."""
    cases = {"binary.yaml": (b"\xff\xfe\x00", "not a text file"), "torn.yaml": (b"a: [", "not YAML")}
    cases |= {"date.yaml": (b"head.dropout: 2024-99-99", "date.yaml:1:1: "), "key.yaml": (b"{[a]: 1}", "not YAML")}
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=message) as caught:
            load_space(tmp_path / name, BASE)
        assert str(tmp_path / name) in str(caught.value)
    for name, message in (("none.yaml", "No such file"), ("", "Is a directory")):
        with pytest.raises(ConfigError, match=rf"{message}.*Give the path of a YAML file"):
            load_space(tmp_path / name, BASE)
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(ConfigError, match=r"empty\.yaml: received None, expected parameters"):
        load_space(tmp_path / "empty.yaml", BASE)


_plain = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(["1e-3", "log", "x", "inf"])
_keys = st.sampled_from(["low", "high", "scale", "values", "points", "when", "lwo"])
_any_about = _plain | st.lists(_plain, max_size=3) | st.dictionaries(_keys, _plain | st.lists(_plain, max_size=3))


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from([*module.KINDS, "x"]), _any_about, max_size=3))
def test_whatever_is_written_it_is_a_space_or_a_config_error(mapping: Any):
    """No other error comes out of a wrong file."""
    try:
        found = {parameter.name for parameter in build_space(mapping, BASE, "my.yaml").parameters}
    except ConfigError as error:
        told = str(error)
    else:
        assert found == set(mapping)
        told = "my.yaml: fine"
    assert told.startswith("my.yaml: ")


def test_numbers_are_read_as_people_write_them():
    """YAML reads 1e-4 as text; a whole number may be written as 2.0, and comes out as a whole one."""
    space = build_space(
        yaml.safe_load("{phase1.learning_rate: {low: 1e-4, high: 1e-2, scale: log}, unfreeze_blocks: {values: [2.0]}}"),
        BASE,
        "my.yaml",
    )
    rate, depth = space.parameters
    assert (rate.low, rate.high, rate.log) == (1e-4, 1e-2, True)
    assert depth.values == (2,)
    assert isinstance(depth.values[0], int)


def test_parameters_stand_behind_those_they_depend_on():
    """Wherever they stand in the file, so that their conditions can be looked at when it is their turn."""
    space = built(head__dropout={**DROPOUT, "when": ONLY_IF_DEEP}, unfreeze_blocks=DEPTH)
    assert [parameter.name for parameter in space.parameters] == ["unfreeze_blocks", "head.dropout"]


@pytest.mark.parametrize(("depth", "counts"), [(0, False), (1, True), (2, True), (3, False)])
def test_the_bounds_of_a_condition_belong_to_it(depth: int, counts: bool):
    """From low to high, both included."""
    space = built(unfreeze_blocks=DEPTH, head__dropout={**DROPOUT, "when": {"unfreeze_blocks": {"low": 1, "high": 2}}})
    assert space.is_active(space.parameters[1], {"unfreeze_blocks": depth}) == counts


def test_a_trial_is_the_plain_run_but_for_its_values():
    """And a value that it does not have is the plain run's."""
    space = built(head__dropout=DROPOUT, unfreeze_blocks=DEPTH)
    config = space.config(BASE, {"head.dropout": 0.4})
    assert config == dataclasses.replace(BASE, head=dataclasses.replace(BASE.head, dropout=0.4))
    assert space.config(BASE, {}) == BASE
    assert space.config(BASE, space.values_of(BASE)) == BASE


@given(st.floats(0, 180), st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.9), st.floats(0, 10))
def test_strength_1_leaves_the_augmentation_as_it_is(
    rotation: float, shift: float, shear: float, zoom: float, strength: float
):
    """Whatever it is; another one multiplies the four ranges as far as a run may have them, and nothing else."""
    base = RunConfig(augment=AugmentConfig(rotation_deg=rotation, shift=shift, shear=shear, zoom=zoom, views=3))
    assert Space(()).config(base, {STRENGTH: 1.0}) == base
    augment = Space(()).config(base, {STRENGTH: strength}).augment
    assert augment.rotation_deg == min(180, rotation * strength)
    assert (augment.shift, augment.shear) == (min(1, shift * strength), min(1, shear * strength))
    assert augment.zoom == min(0.9, zoom * strength)
    same = dataclasses.replace(augment, rotation_deg=rotation, shift=shift, shear=shear, zoom=zoom)
    assert same == base.augment


def test_a_negative_strength_is_refused():
    """There is no such rotation."""
    assert "augment.rotation_deg: received -20" in refusal({STRENGTH: {"values": [-1, 1]}})


def test_a_grid_takes_points_values_and_whole_numbers():
    """Points at equal distances, by factors where the scale is log, the ends included."""

    def grid(name: str, **about: Any) -> list[Any]:
        return build_space({name: about}, BASE, "my.yaml").parameters[0].grid()

    assert grid("head.dropout", low=0, high=0.5, points=3) == [0, 0.25, 0.5]
    assert grid("phase1.learning_rate", low=1e-4, high=1e-2, scale="log", points=3) == pytest.approx([1e-4, 1e-3, 1e-2])
    assert grid("head.dropout", low=0.1, high=0.5, points=1) == [0.1]
    assert grid("head.dropout", low=0.1, high=0.1, points=5) == [0.1]
    assert grid("unfreeze_blocks", low=0, high=4) == [0, 1, 2, 3, 4]
    assert grid("unfreeze_blocks", low=0, high=4, points=3) == [0, 2, 4]
    assert grid("unfreeze_blocks", low=0, high=2, points=9) == [0, 1, 2]
    assert grid("batch_size", low=16, high=64, scale="log", points=3) == [16, 32, 64]
    assert grid("head.dropout", values=[0.3, 0.1]) == [0.3, 0.1]


def test_a_grid_over_a_range_needs_points():
    """Of fractions there is no natural number."""
    with pytest.raises(ConfigError, match=r"head\.dropout: received a range without points.*Add points: 4, or give"):
        list(built(head__dropout=DROPOUT).grid())


def test_a_grid_that_nobody_could_train_is_refused_at_once():
    """It would take all memory to write down; with its size and the ways out."""
    fine = {"low": 0, "high": 0.5, "points": 1000}
    space = built(head__dropout=fine, optimizer__label_smoothing=fine, optimizer__weight_decay=fine)
    with pytest.raises(ConfigError, match=r"received a grid of 1000000000 combinations.*Give fewer points or values"):
        next(space.grid())


@st.composite
def _grids(draw: st.DrawFn) -> Space:
    """Some parameters by values, some of which depend on others."""
    names = draw(st.lists(st.sampled_from(list(module.KINDS)[:7]), min_size=1, max_size=4, unique=True))
    free = draw(st.integers(1, len(names)))
    parameters = []
    for place, name in enumerate(names):
        numbers = st.integers(1, 4) if module.KINDS[name] == "int" else st.sampled_from([0.1, 0.2, 0.3])
        values = tuple(draw(st.lists(numbers, min_size=1, max_size=3)))
        when = {}
        if place >= free:
            one, other = draw(st.floats(0, 4)), draw(st.floats(0, 4))
            when = {draw(st.sampled_from(names[:free])): (min(one, other), max(one, other))}
        parameters.append(Parameter(name=name, values=values, when=when))
    return Space(tuple(parameters))


@given(_grids())
def test_a_grid_has_each_combination_once_under_any_conditions(space: Space):
    """Written out: every choice of values without what does not count in it, as a set."""
    expected = set()
    for values in itertools.product(*(parameter.values for parameter in space.parameters)):
        chosen = dict(zip((parameter.name for parameter in space.parameters), values, strict=True))
        counts = {
            p.name: chosen[p.name]
            for p in space.parameters
            if all(low <= float(chosen[name]) <= high for name, (low, high) in p.when.items())
        }
        expected.add(tuple(sorted(counts.items())))
    found = [tuple(sorted(values.items())) for values in space.grid()]
    assert len(found) == len(set(found))
    assert set(found) == expected


@given(st.floats(1e-9, 0.95), st.floats(1e-9, 0.95), st.booleans(), st.integers(1, 40))
def test_a_grid_stays_in_its_range(one: float, other: float, log: bool, points: int):
    """Rounding among it: a value above the bound of a setting would end the sweep."""
    low, high = min(one, other), max(one, other)
    parameter = Parameter(name="head.dropout", low=low, high=high, log=log, points=points)
    grid = parameter.grid()
    assert all(low <= float(value) <= high for value in grid)
    assert len(grid) == len(set(grid)) <= points
    assert grid[0] == pytest.approx(low)
    assert points == 1 or grid[-1] == pytest.approx(high)


def test_what_is_possible_includes_the_plain_run():
    """Trial 0 has it, whether it lies in the range or not."""
    space = built(unfreeze_blocks={"low": 3, "high": 5}, backbone={"values": ["resnet50", "vgg16"]})
    assert space.possible_values(BASE, "unfreeze_blocks") == [2, 3, 4, 5]
    assert space.possible_values(BASE, "backbone") == ["efficientnet_lite0", "resnet50", "vgg16"]
    assert space.possible_values(BASE, "batch_size") == [64]


def test_a_depth_beyond_a_backbone_is_refused():
    """Beyond any of those that a trial can have, that of the plain run among them."""
    space = built(unfreeze_blocks=DEPTH)
    check_depths(space, BASE, {"efficientnet_lite0": 16, "vgg16": 4}, "my.yaml")
    with pytest.raises(ConfigError) as caught:
        check_depths(space, BASE, {"efficientnet_lite0": 16, "vgg16": 3}, "my.yaml")
    told = "my.yaml: unfreeze_blocks: received up to 4, but vgg16 has 3 blocks. Give 3 or less as high"
    assert str(caught.value) == told
    deep = dataclasses.replace(BASE, unfreeze_blocks=20)
    with pytest.raises(ConfigError, match="received up to 20, but efficientnet_lite0 has 16 blocks"):
        check_depths(built(head__dropout=DROPOUT), deep, {"efficientnet_lite0": 16}, "my.yaml")


def test_a_space_is_known_again_from_strict_json():
    """A condition without a bound is infinite, which JSON does not know; another space is another text."""
    space = built(unfreeze_blocks=DEPTH, head__dropout={**DROPOUT, "when": ONLY_IF_DEEP})
    text = json.dumps(space.to_dict(), allow_nan=False)
    assert json.loads(text) == space.to_dict()
    assert json.loads(text)["head.dropout"]["when"] == {"unfreeze_blocks": [1.0, None]}
    other = built(unfreeze_blocks=DEPTH, head__dropout={**DROPOUT, "when": {"unfreeze_blocks": {"low": 2}}})
    assert other.to_dict() != space.to_dict()


def test_building_a_space_leaves_the_plain_run_alone():
    """A trial's configuration is a new one."""
    before = to_dict(BASE)
    built(head__dropout=DROPOUT).config(BASE, {"head.dropout": 0.5})
    assert to_dict(BASE) == before
