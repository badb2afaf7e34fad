"""The configuration: YAML there and back, what is refused and in which words, golden texts of the named ones."""

from __future__ import annotations

import dataclasses
import math
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pharmclf.config import (
    AugmentConfig,
    ConfigError,
    RunConfig,
    from_dict,
    load_yaml,
    parse_workers,
    to_dict,
    to_yaml,
)
from pharmclf.config.fields import field_infos
from pharmclf.config.presets import PRESETS

ROOT = Path(__file__).parents[1]
NAMED = {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}
RANGES = {path: (info.low, info.high) for path, info in field_infos(RunConfig).items() if info.unit}
# text that YAML reads as something else when it stands there without quotes
TRAPS = ["yes", "off", "null", "~", "007", "1e-3", "1_000", "2024-01-01", "12:30", "[a]", "a: b", "# no", "é药", " x "]
SHAPED: dict[str, st.SearchStrategy[Any]] = {
    "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True) | st.just(""),
    "num_workers": st.sampled_from(["auto", "0", "1", "2", "1-4", "16"]),
    "microbatch": st.sampled_from(["whole", "auto", "1", "16"]),
    "node_timeout": st.sampled_from(["0", "90s", "10m", "1.5h"]),
    "time_budget": st.sampled_from(["", "90s", "1.5h"]),
    "folds": st.just(0),  # never goes with a time budget
    "max_invalid": st.sampled_from(["0", "1", "1%", "0.01", "99.5 %"]),
    "feature_cache": st.sampled_from(["auto", "never"]),  # always goes with some values of augment.views only
    "target_error": st.sampled_from(["0.1 %", "1%", "0.05"]),
    "eval_data": st.sampled_from([(), ("shifted=/a/b",), ("x.1=s3://b/p", "y=c d")]),
    "unknown": st.sampled_from([(), ("other=/a/b",), ("u.1=s3://b/p", "v=c d")]),
    "mlflow": st.sampled_from(["", "http://127.0.0.1:5000", "databricks"]),
    **{f"phase{number}.image_size": st.just("") for number in (1, 2)},  # one that fits the other fields: test_phases.py
    "head.dense": st.lists(st.integers(1, 4096), max_size=4).map(tuple),
}


def _value(hint: Any, path: str) -> st.SearchStrategy[Any]:
    """Any value that a field may have."""
    if dataclasses.is_dataclass(hint):
        return _fields(hint, f"{path}.")
    if path in SHAPED:
        return SHAPED[path]
    if typing.get_origin(hint) is Literal:
        return st.sampled_from(typing.get_args(hint))
    low, high = RANGES.get(path, (0, 0))
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(max(int(low), path == "phase1.epochs"), 10**9 if high == math.inf else int(high))
    if hint is float:
        return st.floats(low, 1e12 if high == math.inf else high)
    texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
    return st.sampled_from(TRAPS) | texts.filter(lambda text: "://" not in text)  # a location of no storage is refused


def _fields(cls: Any, prefix: str = "") -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{name: _value(hint, f"{prefix}{name}") for name, hint in hints.items()})


def _leaves(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


@settings(deadline=None, max_examples=50)
@given(_fields(RunConfig))
def test_every_field_survives_yaml(config: RunConfig):
    """Whatever the fields hold, the YAML of a configuration reads back as the same configuration."""
    assert from_dict(yaml.safe_load(to_yaml(config))) == config


def test_a_file_of_the_whole_configuration_loads_as_it_was(tmp_path: Path):
    """`load_yaml` undoes `to_yaml`, and an empty file is the defaults."""
    config = RunConfig(data="s3://bucket/pills", seed=7)
    (tmp_path / "whole.yaml").write_text(to_yaml(config), encoding="utf-8")
    (tmp_path / "empty.yaml").write_text("# nothing\n", encoding="utf-8")
    assert load_yaml(tmp_path / "whole.yaml") == config
    assert load_yaml(tmp_path / "empty.yaml") == RunConfig()


def test_yaml_writes_every_field_out():
    """A changed default of any field shows in a saved configuration, because none is left out."""
    names = {field.name for field in dataclasses.fields(RunConfig)}
    assert set(yaml.safe_load(to_yaml(RunConfig()))) == names
    assert len(_leaves(to_dict(RunConfig()))) > 40


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"batchsize": 3}, "unknown key batchsize; did you mean batch_size?"),
        ({"phase1": {"epoch": 3}}, "unknown key phase1.epoch; did you mean phase1.epochs?"),
        ({"stoping": {}}, "unknown key stoping; did you mean stopping?"),
        ({"split": {"zzzz": 1}}, "unknown key split.zzzz; known here: test, validation"),
        ({3: 4}, "unknown key 3; known here: data"),
        ({None: 4}, "unknown key None; "),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(mapping: dict[Any, Any], message: str):
    """The file, the key's whole path and what was probably meant are in the message."""
    with pytest.raises(ConfigError) as caught:
        from_dict(mapping, source="my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"seed": "x"}, "expected int"),
        ({"seed": 1.5}, "expected int"),
        ({"seed": True}, "expected int"),
        ({"split": {"test": "half"}}, "expected float"),
        ({"split": {"test": False}}, "expected float"),
        ({"split": {"test": None}}, "expected float"),
        ({"xla": 1}, "expected bool"),
        ({"xla": "true"}, "expected bool"),
        ({"data": ["a"]}, "expected str"),
        ({"data": None}, "expected str"),
        ({"name": True}, "expected str"),
        ({"head": {"dense": 512}}, "expected tuple"),
        ({"head": {"dense": ["x"]}}, "expected int"),
        ({"head": 512}, "expected keys and values"),
        ({"backbone": "resnet_50"}, "Did you mean resnet50?"),
        ({"backbone": ["resnet50"]}, "expected one of efficientnet_lite0"),
        ({"precision": "float16"}, "expected one of auto, float32"),
    ],
)
def test_a_wrong_type_is_refused(mapping: dict[str, Any], expected: str):
    """Received and expected are said, with the key's path."""
    path, value = next(iter(_leaves(mapping).items()))
    with pytest.raises(ConfigError) as caught:
        from_dict(mapping)
    part = value[0] if path == "head.dense" and isinstance(value, list) else value  # the item that does not fit
    assert f"{path}: received {part!r}" in str(caught.value)
    assert expected in str(caught.value)


def test_numbers_are_read_as_people_write_them():
    """YAML reads 1e-3 as text and 2 as a whole number; both are a float where one is expected, and a text where not."""
    text = "{phase1: {learning_rate: 1e-3}, augment: {shift: 0}, num_workers: 2}"
    config = from_dict(yaml.safe_load(text))
    assert (config.phase1.learning_rate, config.augment.shift, config.num_workers) == (0.001, 0.0, "2")
    assert isinstance(config.augment.shift, float)


def test_off_needs_no_quotes():
    """YAML reads a bare off as false; where off is one of the choices it is meant."""
    assert from_dict(yaml.safe_load("optimizer: {class_weights: off}")).optimizer.class_weights == "off"
    with pytest.raises(ConfigError, match="received True, expected one of off, auto"):
        from_dict({"optimizer": {"class_weights": True}})


@pytest.mark.parametrize("path", RANGES)
def test_a_value_outside_its_range_is_refused(path: str):
    """Each bound itself is accepted; a step below, a step above, infinity and what is no number are not."""
    low, high = RANGES[path]
    default = _leaves(to_dict(RunConfig()))[path]
    step = 1 if isinstance(default, int) else 1e-6
    kind = type(default)

    def build(value: float) -> RunConfig:
        return from_dict(_nested(path, value if math.isinf(value) or math.isnan(value) else kind(value)))

    build(low)
    refused = [low - step]
    if high != math.inf:
        build(high)
        refused.append(high + step)
    if kind is float:
        refused += [math.inf, math.nan]
    for value in refused:
        with pytest.raises(ConfigError) as caught:
            build(value)
        assert str(caught.value).startswith(f"{path}: received ")
        assert f"{low}" in str(caught.value)


def test_every_number_has_a_range():
    """A field that holds a number cannot be added without saying which numbers make sense."""
    numbers = {path for path, value in _leaves(to_dict(RunConfig())).items() if type(value) in (int, float)}
    assert numbers == set(RANGES)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"head": {"dense": [512, 0]}}, "head.dense: received"),
        ({"phase1": {"epochs": 0}, "phase2": {"epochs": 0}}, "Give at least one phase an epoch"),
        ({"name": "../up"}, "name: received '../up'"),
        ({"name": ".hidden"}, "name: received '.hidden'"),
        ({"name": "a b"}, "name: received 'a b'"),
        ({"num_workers": "2-1"}, "num_workers: received '2-1'"),
        ({"max_invalid": "2"}, "max_invalid: received '2'"),
    ],
)
def test_fields_that_do_not_fit_are_refused(mapping: dict[str, Any], message: str):
    """Checks beyond ranges: layers, phases, the name as a folder, workers and shares."""
    with pytest.raises(ConfigError) as caught:
        from_dict(mapping)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2", (2, 2)), ("1-4", (1, 4)), ("3-3", (3, 3)), ("0", (0, 0)), (" 2 ", (2, 2)), ("auto", (0, 0))],
)
def test_workers_are_a_number_or_a_span(text: str, expected: tuple[int, int]):
    """N, MIN-MAX, and 0 for the calling process."""
    assert parse_workers(text) == RunConfig(num_workers=text).worker_range == expected


@pytest.mark.parametrize("text", ["", "x", "-1", "1-", "-4", "4-1", "0-2", "1.5", "1-2-3", "1,2"])
def test_other_workers_are_refused(text: str):
    """The message says what was received and how it is written."""
    with pytest.raises(ConfigError, match=r"expected auto, N, MIN-MAX or 0\. Write 2"):
        parse_workers(text)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("demo", "demo"),
        ("/data/My pills/", "My-pills"),
        ("s3://bucket/set/v2/", "v2"),
        ("list.csv", "list.csv"),
        ("/", "run"),
        ("..", "run"),
        ("药片", "run"),
    ],
)
def test_a_run_without_a_name_is_named_after_its_data(data: str, expected: str):
    """The name is a folder's name, and a name given wins."""
    assert RunConfig(data=data).run_name == expected
    assert RunConfig(data=data, name="mine").run_name == "mine"
    RunConfig(name=expected)  # what is derived would be accepted as given


def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path):
    """Missing, not text, not YAML, not keys and values: each with its own words and the file's path."""
    cases = {"binary.yaml": (b"\xff\xfe\x00", "not a text file"), "torn.yaml": (b"a: [", "not YAML")}
    cases["list.yaml"] = (b"- a\n", "expected keys and values")
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=message) as caught:
            load_yaml(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(ConfigError, match="No such file"):
        load_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", NAMED)
def test_a_named_config_resolves_to_its_golden_text(name: str, request: pytest.FixtureRequest):
    """A changed default shows in review. Meant so? pytest tests/test_config.py --renew-goldens"""
    text = to_yaml(load_yaml(NAMED[name]))
    golden = ROOT / "tests" / "goldens" / f"{name}.yaml"
    if request.config.getoption("--renew-goldens"):
        golden.write_text(text, encoding="utf-8")
    assert golden.is_file(), f"{golden} is missing; write it with --renew-goldens"
    assert text == golden.read_text(encoding="utf-8")


def test_no_golden_text_is_left_over():
    """Every golden text belongs to a named config, the demo and the reference run among them."""
    assert sorted(path.stem for path in (ROOT / "tests" / "goldens").glob("*.yaml")) == sorted(NAMED)
    assert {"demo", "resnet50"} <= set(NAMED)


def test_a_named_config_opens_with_the_command_that_runs_it():
    """The first lines are a comment, and the command that runs it is in it."""
    for name, path in NAMED.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        opening = lines[: next(place for place, line in enumerate(lines) if not line.startswith("#"))]
        assert any("pharmclf" in line for line in opening), name


def test_the_reference_config_is_the_reference_run():
    """Section 2 of the design, setting by setting."""
    config = load_yaml(PRESETS / "resnet50.yaml")
    assert (config.backbone, config.weights, config.image_size) == ("resnet50", "imagenet", 224)
    assert (config.batch_size, config.precision, config.unfreeze_blocks) == (64, "mixed_float16", 10)
    assert (config.head.dense, config.head.dropout) == ((512, 256), 0.3)
    assert (config.split.test, config.split.validation) == (0.2, 0.2)
    phases = [(phase.epochs, phase.learning_rate, phase.schedule) for phase in (config.phase1, config.phase2)]
    assert phases == [(20, 1e-4, "constant"), (30, 1e-5, "constant")]
    stopping = config.stopping
    assert (stopping.early_patience, stopping.plateau_patience) == (5, 3)
    assert (stopping.plateau_factor, stopping.learning_rate_floor) == (0.5, 1e-7)
    augment = config.augment
    assert (augment.rotation_deg, augment.shift, augment.shear, augment.zoom) == (20, 0.2, 0.2, 0.2)
    assert (augment.horizontal_flip, augment.vertical_flip, augment.views, augment.fill) == (True, False, 0, "nearest")
    optimizer = config.optimizer
    assert (optimizer.weight_decay, optimizer.clip_norm, optimizer.label_smoothing) == (0, 0, 0)
    assert optimizer.class_weights == "off"


@pytest.mark.parametrize("field", ["data", "storage", "weights", "eval_data", "unknown"])
def test_the_address_of_a_web_page_is_no_location(field: str):
    """It is refused before anything is asked of the network; the stores' own schemes are not."""
    for scheme in ("https", "HTTP", "ftp", "hf"):
        location = f"{scheme}://images.invalid/pills.zip"
        with pytest.raises(ConfigError, match=f"{field}: .*{scheme}:// is no folder or bucket. Download and unpack it"):
            RunConfig(**{field: (f"x={location}",) if field in ("eval_data", "unknown") else location})
    for location in ("s3://bucket/x", "gs://bucket/x", "az://container/x", "file:///x", "C:/x", "a b"):
        RunConfig(**{field: (f"x={location}",) if field in ("eval_data", "unknown") else location})


def test_activations_can_always_be_kept_where_pictures_come_back():
    """With a number of views, or without augmentation; else the remedy is named."""
    still = AugmentConfig(rotation_deg=0, shift=0, shear=0, zoom=0, horizontal_flip=False)
    assert RunConfig(feature_cache="always", augment=AugmentConfig(views=2)).views == 2
    assert RunConfig(feature_cache="always", augment=still).views == 1
    with pytest.raises(ConfigError, match=r"--augment\.views 2"):
        RunConfig(feature_cache="always")
