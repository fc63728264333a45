import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from mtf_config import (
    ConfigurationManager,
    ConfigValidationError,
    ExperimentConfig,
    OptimizerConfig,
    Problem,
    TrainingConfig,
)
from mtf_config._build import shown

MINIMAL: dict[str, Any] = {
    "experiment_name": "digits",
    "model": {"type": "mlp"},
    "data": {"dataset_name": "digits"},
}


def create(*overrides: str, **values: Any) -> ExperimentConfig:
    """Create a config of what is required and *values*."""
    return ConfigurationManager(environ={}).create_config(MINIMAL | values, overrides)


def problems(*overrides: str, **values: Any) -> tuple[Problem, ...]:
    """Return the problems of a config that must have some."""
    with pytest.raises(ConfigValidationError) as caught:
        create(*overrides, **values)
    return caught.value.problems


def test_every_problem_has_its_file_line_column_and_full_key(tmp_path: Path) -> None:
    """One report names all that is wrong, each at its own place, and what is right."""
    Path(tmp_path, "bad.yaml").write_text(
        "experiment_name: ../x\n"
        "entry_point: /etc/x.py\n"
        "seed: 1.5\n"
        "model:\n"
        "  hidden_size: '64'\n"
        "  dropout: 1\n"
        "  x: [1, {y: .nan}]\n"
        "data: {root: 3}\n"
        "trainer: {max_epochs: 0, epochs: 3}\n"
        "optimizer:\n"
        "  betas: [0.9]\n"
        "  lr: fast\n"
        "scheduler: cosine\n"
        "slurm: {time: 90, mem: 32GB}\n"
        "lr: 1\n",
        "utf-8",
    )
    with pytest.raises(ConfigValidationError) as caught:
        ConfigurationManager(tmp_path).load("bad.yaml", ["optimizer.eps=0"])
    assert sorted(str(caught.value).splitlines()) == sorted(
        [
            "18 problems in the config:",
            (
                "  bad.yaml:1:18: experiment_name: not valid, found the text '../x'; write 1 "
                "to 128 letters, digits, dots, dashes and underscores, the first a letter or "
                "digit"
            ),
            (
                "  bad.yaml:2:14: entry_point: not valid, found the text '/etc/x.py'; write a "
                "script inside the project, `train.py`, or `package.module:function`"
            ),
            (
                "  bad.yaml:3:7: seed: not valid, found 1.5; write an integer, without quotes "
                "or a point"
            ),
            "  bad.yaml:5:3: model.type: missing: Name of the model in the registry.",
            (
                "  bad.yaml:5:16: model.hidden_size: not valid, found the text '64'; write an "
                "integer, without quotes or a point"
            ),
            "  bad.yaml:6:12: model.dropout: not valid, found 1; write a number below 1",
            (
                "  bad.yaml:7:14: model.x.1.y: NaN is not a value: it does not even equal "
                "itself"
            ),
            (
                "  bad.yaml:8:7: data.dataset_name: missing: Name of the dataset in the "
                "registry."
            ),
            (
                "  bad.yaml:8:14: data.root: not valid, found 3; write text; put it in "
                'quotes: "...", or null'
            ),
            (
                "  bad.yaml:9:23: training.max_epochs: not valid, found 0; write a number at "
                "least 1"
            ),
            (
                "  bad.yaml:9:26: training.epochs: no such key; did you mean "
                "training.max_epochs?"
            ),
            (
                "  bad.yaml:11:10: optimizer.betas: not valid, found a list of 1; give a list "
                "of 2"
            ),
            (
                "  bad.yaml:12:7: optimizer.lr: not valid, found the text 'fast'; write a "
                "number, without quotes"
            ),
            (
                "  override 'optimizer.eps=0': optimizer.eps: not valid, found 0; write a "
                "number above 0"
            ),
            (
                "  bad.yaml:13:12: scheduler: not valid, found the text 'cosine'; write a "
                "section of `key: value` lines, or null"
            ),
            (
                "  bad.yaml:14:15: slurm.time: not valid, found 90; write text; put it in "
                'quotes: "..."'
            ),
            (
                "  bad.yaml:14:24: slurm.mem: not valid, found the text '32GB'; write a size "
                'such as "32G" or "512M"'
            ),
            "  bad.yaml:15:1: lr: no such key; did you mean optimizer.lr?",
        ]
    )


def test_one_problem_is_counted_as_one() -> None:
    """The message reads well for one."""
    with pytest.raises(ConfigValidationError, match=r"^1 problem in the config:\n"):
        create(seed=-1)


def test_missing_sections_say_what_belongs_there() -> None:
    """An empty config lists what every experiment needs."""
    with pytest.raises(ConfigValidationError) as caught:
        ConfigurationManager().create_config({})
    assert [str(problem) for problem in caught.value.problems] == [
        (
            "code: experiment_name: missing: Name of the run and of its folder: at most "
            "128 letters, digits, dots, dashes and underscores, the first a letter or digit."
        ),
        (
            "code: model: missing: What is trained. Models differ, so further keys are kept "
            "and given to yours."
        ),
        "code: data: missing: Which samples are read, and how.",
    ]


def test_an_unknown_key_without_a_near_one_lists_the_keys() -> None:
    """Where nothing is similar, the reader sees the choice."""
    (problem,) = problems(checkpoint={"xyzzy": 1})
    assert problem.expected == "the keys here are save_every_n_epochs, keep_last_n"
    (problem,) = problems(xyzzy=1)
    assert problem.expected.startswith("the keys here are experiment_name, description,")


@pytest.mark.parametrize(
    ("betas", "found"),
    [([], "a list of 0"), ([0.1], "a list of 1"), ([0.1] * 3, "a list of 3")],
)
def test_a_list_of_wrong_length_is_one_problem(betas: list[float], found: str) -> None:
    """It names the list, not its absent items."""
    (problem,) = problems(optimizer={"betas": betas})
    assert (problem.key, problem.found) == ("optimizer.betas", found)
    assert problem.expected == "give a list of 2"


def test_a_problem_inside_a_list_names_the_item() -> None:
    """The key goes on into the list."""
    found = problems(optimizer={"betas": [1.0, "0.9"]})
    assert [problem.key for problem in found] == [
        "optimizer.betas.0",
        "optimizer.betas.1",
    ]


def test_keys_called_like_types_are_kept_in_messages() -> None:
    """`dict` and `list` are names like any other."""
    (problem,) = problems(model={"type": "m", "dict": {"list": [{"str": math.nan}]}})
    assert problem.key == "model.dict.list.0.str"


@dataclasses.dataclass
class Point:
    x: int = 1


class Scalar:
    """Looks like NumPy's: no subclass of float, but convertible."""

    def __float__(self) -> float:
        return 1.0

    def __index__(self) -> int:
        return 1

    def item(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (Scalar(), "a Python Scalar"),
        (Point(), "a Python Point"),
        (Path("a"), "a Python PosixPath"),
        (b"a", "a Python bytes"),
        ({1}, "a Python set"),
        pytest.param(10**5000, "an integer of 16610 bits", id="huge"),
        ("a" * 1000, f"the text 'a{'a' * 58}..."),
        ({"a": 1, "b": 2}, "a mapping with the keys a, b"),
        ([1, 2], "a list of 2"),
        (None, "nothing (null)"),
        (True, "true"),
    ],
)
def test_what_was_found_is_named(value: Any, found: str) -> None:
    """Any Python value in the place of a number is a problem that names it, shortly."""
    (problem,) = problems(optimizer={"lr": value})
    assert (problem.key, problem.found) == ("optimizer.lr", found)


def test_values_below_secret_names_are_not_shown() -> None:
    """A secret in the wrong place does not reach the message."""
    text = str(problems(api_key="sk-1", optimizer={"hf_token": "sk-2", "lr": "x"}))
    assert "sk-" not in text
    assert "api_key" in text


def cyclic_list() -> list[Any]:
    """Make a list that holds itself, twice."""
    cycle: list[Any] = []
    cycle += [cycle, cycle]
    return cycle


def cyclic_dict() -> dict[str, Any]:
    """Make a mapping that holds itself."""
    cycle: dict[str, Any] = {}
    cycle["again"] = cycle
    return cycle


def deep(levels: int) -> Any:
    """Nest mappings and lists *levels* deep."""
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"k": value}
    return value


@pytest.mark.parametrize(
    ("values", "key", "message"),
    [
        ({1: 2}, "", "a key must be text, found a Python int"),
        ({None: 2}, "", "a key must be text, found a Python NoneType"),
        ({(1, 2): 2}, "", "a key must be text, found a Python tuple"),
        ({"model": {"type": "m", True: 2}}, "model", "a key must be text"),
        ({"optimizer": {"": 2}}, "optimizer", "the key '' is empty or holds a dot"),
        ({"optimizer.lr": 2}, "", "the key 'optimizer.lr' is empty or holds a dot"),
        ({"model": {"x": {1: 2}}}, "model.x", "a key must be text"),
        ({"model": {"x": cyclic_list()}}, "model.x." + "0." * 29 + "0", "levels deep"),
        ({"x": cyclic_dict()}, "x" + ".again" * 31, "levels deep"),
        ({"model": {"x": deep(5000)}}, "model.x" + ".0.k" * 15, "levels deep"),
        ({"model": {"x": [[0] * 1000] * 100}}, "", "more than 50000 values"),
        ({"trainer": {}, "training": {}}, "", "`trainer` and `training` are one section"),
        ({"defaults": []}, "defaults", "read only from a file"),
    ],
)
def test_structures_that_no_file_could_hold(
    values: dict[Any, Any], key: str, message: str
) -> None:
    """Cycles, depth, size and keys are problems with a key, never a traceback."""
    with pytest.raises(ConfigValidationError) as caught:
        ConfigurationManager().create_config(MINIMAL | values)
    (problem,) = caught.value.problems
    assert problem.key == key
    assert message in problem.message


@pytest.mark.parametrize("values", [None, 5, "x", [1], [], ("a", 1), Point(), {1, 2}])
def test_what_is_no_mapping_is_a_problem(values: Any) -> None:
    """A batch with a hole in it gets a result for the hole."""
    with pytest.raises(ConfigValidationError, match="not a mapping, found"):
        ConfigurationManager().create_config(values)


def test_sections_may_be_given_as_objects() -> None:
    """They keep defaults apart from values, are found by placeholders and overridden."""
    config = create(
        "trainer.batch_size=8",
        optimizer=OptimizerConfig(lr=0.5),
        trainer=TrainingConfig(max_epochs=3),
        model={"type": "m", "rate": "${optimizer.lr}"},
    )
    assert config.model.rate == 0.5  # type: ignore[attr-defined]
    assert (config.training.max_epochs, config.training.batch_size) == (3, 8)
    assert str(config.provenance("optimizer.lr")) == "code"
    assert str(config.provenance("optimizer.eps")) == "default"


def test_text_in_sections_given_as_objects_is_no_placeholder() -> None:
    """They hold values, not the text of a file."""
    data = create().data.model_copy(update={"root": r"\${seed}/${x"})
    assert create(data=data).data.root == r"\${seed}/${x"


def test_the_config_shares_nothing_with_what_it_was_made_of() -> None:
    """Changing the given values later changes no config."""
    layers = [{"width": [8]}]
    config = create(model={"type": "m", "layers": layers})
    before = config.content_hash()
    layers[0]["width"].append(9)
    assert config.content_hash() == before


def test_shown_names_every_kind() -> None:
    """Messages never grow with the value."""
    assert shown(False) == "false"  # noqa: FBT003 - a value
    assert shown(1.5) == "1.5"
    assert shown((1,)) == "a list of 1"
    assert len(shown({str(i): i for i in range(1000)})) < 100
