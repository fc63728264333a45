from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtf_config import ConfigurationManager, ExperimentConfig, MtfConfigError
from mtf_config._overrides import Override, choices, parse, split_key
from mtf_config.errors import OverrideError

Write = Callable[[str, str | bytes], Path]
Load = Callable[..., ExperimentConfig]
Refusal = Callable[..., str]
CONFIG = """\
experiment_name: a
model: {type: m, layers: [1, {k: 2}], table: {"0": a, "007": b}, note: hi, nul: null}
data: {dataset_name: d}
optimizer: {betas: [0.5, 0.6]}
"""


@pytest.fixture(autouse=True)
def _config(write: Write) -> None:
    """Write the config that every test here overrides."""
    write("c.yaml", CONFIG)


def value_of(config: ExperimentConfig, key: str) -> Any:
    """Return the value at a dotted key of the saved form."""
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optimizer.lr=3e-4", "optimizer.lr", 3e-4),
        ("optimizer.lr=1", "optimizer.lr", 1.0),
        (" seed = 7 ", "seed", 7),
        ("seed=0x10", "seed", 16),
        ("trainer.max_epochs=3", "training.max_epochs", 3),
        ("training.max_grad_norm=null", "training.max_grad_norm", None),
        ("training.use_amp=false", "training.use_amp", False),
        ("slurm.time=90", "slurm.time", "90"),
        ("slurm.time=12:00:00", "slurm.time", "12:00:00"),
        ("description=", "description", ""),
        ("description=123", "description", "123"),
        ("description=null", "description", "null"),
        ("description=true", "description", "true"),
        ("description=a=b: c # d", "description", "a=b: c # d"),
        ("description='a: [b'", "description", "a: [b"),
        ('description="\\u00e9\\n"', "description", "é\n"),
        ("description=''", "description", ""),
        ("description=größe → 😀", "description", "größe → 😀"),
        (r"description=\${x}", "description", "${x}"),
        ("data.root=null", "data.root", None),
        ("data.root='null'", "data.root", "null"),
        ("optimizer.betas=[0.1, 0.2]", "optimizer.betas", [0.1, 0.2]),
        ("optimizer.betas.0=0.8", "optimizer.betas", [0.8, 0.6]),
        ("scheduler={type: linear, warmup_steps: 3}", "scheduler.warmup_steps", 3),
        ("scheduler.warmup_steps=4", "scheduler.warmup_steps", 4),
        ("model.layers.1.k=[5, {z: 6}]", "model.layers.1.k", [5, {"z": 6}]),
        ("+model.layers.1.new=3", "model.layers.1", {"k": 2, "new": 3}),
        ("model.layers.0={deep: [x]}", "model.layers.0", {"deep": ["x"]}),
        ("model.table.0=c", "model.table", {"0": "c", "007": "b"}),
        ("model.table.007=c", "model.table", {"0": "a", "007": "c"}),
        ("+model.table.5=c", "model.table", {"0": "a", "007": "b", "5": "c"}),
        ("model.note=8", "model.note", 8),
        ("model.note='8'", "model.note", "8"),
        ("model.note=&a *b !c", "model.note", "&a *b !c"),
        ("+model.heads=8", "model.heads", 8),
        ("+model.a.b.c=1e-3", "model.a", {"b": {"c": 1e-3}}),
        ("+model.nul.b=1", "model.nul", {"b": 1}),
        ("++model.note=x", "model.note", "x"),
        ("++model.new=x", "model.new", "x"),
        ("+model.größe=1", "model.größe", 1),
        ("+model.list=[]", "model.list", []),
        ("optimizer={lr: 0.5}", "optimizer.betas", [0.5, 0.6]),
        ("~optimizer.betas", "optimizer.betas", [0.9, 0.999]),
        ("~trainer", "training.max_epochs", 100),
        ("~model.layers", "model.note", "hi"),
        ("~model.table.0", "model.table", {"007": "b"}),
        ("~model.layers.1.k", "model.layers", [1, {}]),
    ],
)
def test_applies(load: Load, override: str, key: str, value: object) -> None:
    """One override changes one thing, typed as the schema wants it."""
    if override == "~trainer":
        config = load("c.yaml", "trainer.max_epochs=3", override)
    else:
        config = load("c.yaml", override)
    found = value_of(config, key)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("", "override '': is not KEY=VALUE, +KEY=VALUE or ~KEY, such as"),
        ("=1", "override '=1': is not KEY=VALUE"),
        ("+", "is not KEY=VALUE"),
        ("~", "is not KEY=VALUE"),
        ("--seed=1", "is not KEY=VALUE"),
        ("+++seed=1", "is not KEY=VALUE"),
        ("seed..x=1", "is not KEY=VALUE"),
        (".seed=1", "is not KEY=VALUE"),
        ("a b=1", "is not KEY=VALUE"),
        ("1=1", "is not KEY=VALUE"),
        ("a[0]=1", "is not KEY=VALUE"),
        ("seed", "override 'seed': seed: has no value: write seed=VALUE"),
        ("+seed", "seed: has no value: write +seed=VALUE"),
        ("~optimizer=1", "optimizer: write ~optimizer without a value"),
        ("~scheduler", "scheduler: the config sets no such key"),
        ("~model.layers.0", "items of a list cannot be taken away: give the whole"),
        ("~model.layers.9", "model.layers.9: the config sets no such key"),
        ("sede=1", "sede: no such key; did you mean seed?"),
        ("lr=1", "lr: no such key; did you mean optimizer.lr?"),
        ("optimizer.lrr=1", "optimizer.lrr: no such key; did you mean optimizer.lr?"),
        ("++zzzz.y=1", "zzzz.y: no such key"),
        ("defaults=[a]", "defaults: no such key"),
        ("seed.x=1", "seed.x: no such key"),
        ("optimizer.betas.x=1", "optimizer.betas.x: no such key"),
        ("model.heads=8", "is not in the config. To add it, write +model.heads=..."),
        (
            "model.hiden_size=8",
            "did you mean model.hidden_size? To add it, write +model.",
        ),
        ("+model.note=8", "model.note: is there already: change it with model.note=..."),
        ("+model.layers.x=1", "no such item: model.layers is a list of 2"),
        ("+model.layers.-1=1", "no such item: model.layers is a list of 2"),
        ("++model.layers.2=1", "no such item: model.layers is a list of 2"),
        ("++model.layers.2.x=1", "no such item: model.layers is a list of 2"),
        ("+model.layers.0.x=1", "model.layers.0 is a value, not a section"),
        ("+model.note.x=1", "model.note is a value, not a section"),
        ("+model.none.0=1", "sets no list model.none: give the whole, model.none=[...]"),
        ("+model.none.a.0.b=1", "the config sets no list model.none.a: give the whole"),
        ("optimizer.betas.9=1", "no such item: optimizer.betas is a list of 2"),
        (f"optimizer.betas.{'9' * 5000}=1", "no such key"),
        ("optimizer=sgd", "did you mean optimizer.type=sgd?"),
        ("model=[a]", "model: not valid, found a list of 1"),
        ("a/b=c", "no `defaults:` list names the config group `a/b`"),
        ("optimizer.betas=[1, 2", "optimizer.betas: column "),
        ("scheduler={type: !!python/name:os.system x}", "column 8 of the value: the tag"),
        ("description=[draft] x", "begins with [ is read as YAML; put a text in quotes"),
        ("description='x", "column 1 of the value: this quote is never closed"),
        ("description='a' b", "of the value: "),
        ("model={type: m, type: n}", "the key 'type' stands twice"),
        ("+model.x=[&a [*a]]", "*a stands inside itself"),
        ("seed=1e999", "seed: 1e999 is too large for a 64-bit number"),
        ("seed=" + "9" * 5000, "seed: a number of 5000 digits is too large"),
        ("+model.x=" + "[" * 40, "nested more than 32 levels deep"),
        ("+model.a.b.c.d.e=" + "[" * 28 + "]" * 28, "nested more than 32 levels deep"),
        ("seed='7'", "seed: not valid, found the text '7'"),
        ("seed=", "seed: not valid, found the text ''"),
        ("optimizer.lr=.nan", "optimizer.lr: not valid, found nan"),
        ("+model.x=.nan", "NaN is not a value"),
        ("training.batch_size=-1", "training.batch_size: not valid, found -1"),
        ("experiment_name=../../x", "experiment_name: not valid, found the text '../"),
        (
            os.fsdecode(b"description=\xff"),
            "override 'description=\\udcff': is not UTF-8",
        ),
        (os.fsdecode(b"\xff=1"), "is not UTF-8 text"),
        (os.fsdecode(b"+model.x=[\xff]"), "is not UTF-8 text"),
    ],
)
def test_refused(refusal: Refusal, override: str, message: str) -> None:
    """What cannot be applied says why and what to write, and can be printed."""
    text = refusal("c.yaml", override)
    text.encode()
    assert message in text
    assert len(text) < 2000


def test_in_order(load: Load) -> None:
    """Overrides are applied one after the other, each on what the last one left."""
    config = load("c.yaml", "+model.x={a: [1]}", "model.x.a.0=2", "+model.x.b=3", "seed=1",
                  "seed=2", "~model.note", "+model.note=9")  # fmt: skip
    assert value_of(config, "model.x") == {"a": [2], "b": 3}
    assert config.seed == 2
    assert value_of(config, "model.note") == 9


def test_provenance_is_the_override(load: Load) -> None:
    """A changed value names its override; what it replaced has left no trace."""
    config = load("c.yaml", "model.layers=[7, {k: 8, n: 9}]", "model.layers.1.k=5")
    assert str(config.provenance("model.layers.1.n")) == (
        "override 'model.layers=[7, {k: 8, n: 9}]'"
    )
    assert str(config.provenance("model.layers.1.k")) == "override 'model.layers.1.k=5'"
    assert str(config.provenance("model.note")).startswith("c.yaml:2:")


def test_long_override_is_shown_short(refusal: Refusal) -> None:
    """The message repeats as much of an override as tells it from others."""
    text = refusal("c.yaml", "sede=" + "x" * 10_000)
    assert len(text) < 200


@pytest.mark.parametrize("overrides", [[1], [b"seed=1"], [("seed", 1)], [None]])
def test_override_that_is_no_text(tmp_path: Path, overrides: list[Any]) -> None:
    """Anything but text in the list is the caller's bug, and said to be."""
    manager = ConfigurationManager(tmp_path, environ={})
    with pytest.raises(TypeError, match="an override is a text KEY=VALUE, not a"):
        manager.load("c.yaml", overrides)
    with pytest.raises(TypeError, match="an override is a text KEY=VALUE, not a"):
        manager.create_config({}, overrides)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("g=a", "a"), ("g= a ", "a"), ("g=null", None), ("g=~", None), ("g=[a, b]", ["a", "b"]),
     ("g=[]", []), ("g='a'", "a"), ("g=", "")],
)  # fmt: skip
def test_choice_of_a_group(argument: str, value: object) -> None:
    """For a key that is a group, text is a name, a list several, and null none."""
    assert choices([argument]) == {"g": value}
    override = parse(argument, frozenset({"g"}))
    assert override[:3] == ("choose", ("g",), value)


@pytest.mark.parametrize(
    "argument",
    ["g={a: b}", "g=[1]", "g=[a", "g=[[a]]", "+g=a", "~g", "g.x=a", "g", "a b=c"],
)
def test_no_choice(argument: str) -> None:
    """Mappings, other lists, signs and dotted keys choose nothing."""
    assert choices([argument]) == {}


def test_last_choice_counts() -> None:
    """A later choice replaces an earlier one, under either name of a section."""
    assert choices(["trainer=a", "training=b"]) == {"training": "b"}
    assert choices(["g=a", "g={b: 1}"]) == {}


def test_group_s_own_section_is_still_set(load: Load, write: Write) -> None:
    """A mapping for a key that is a group is merged into its section."""
    write("main.yaml", f"defaults: [{{scheduler: cos}}]\n{CONFIG}")
    write("scheduler/cos.yaml", "type: cosine\nwarmup_steps: 1\n")
    config = load("main.yaml", "scheduler={warmup_steps: 9}")
    assert config.scheduler is not None
    assert (config.scheduler.type, config.scheduler.warmup_steps) == ("cosine", 9)


def test_choose_through_load(load: Load, write: Write) -> None:
    """`load` takes choices and changes of the same section together, in any order."""
    write("main.yaml", f"defaults: [{{scheduler: cos}}]\n{CONFIG}")
    write("scheduler/cos.yaml", "type: cosine\nwarmup_steps: 1\n")
    write("scheduler/lin.yaml", "type: linear\nwarmup_steps: 2\n")
    config = load("main.yaml", "scheduler.min_lr=0.5", "scheduler=lin")
    assert config.scheduler is not None
    assert config.scheduler.model_dump() == {
        "type": "linear",
        "warmup_steps": 2,
        "min_lr": 0.5,
    }
    assert load("main.yaml", "scheduler=null").scheduler is None


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a.0.b", ("a", 0, "b")),
        ("0.0", ("0", 0)),
        ("a.00", ("a", "00")),
        ("a.-1", ("a", "-1")),
        ("a.٣", ("a", "٣")),
        ("a." + "9" * 10, ("a", "9" * 10)),
        ("trainer.trainer", ("training", "trainer")),
    ],
)
def test_split_key(key: str, path: tuple[str | int, ...]) -> None:
    """Only what Python would write as an index becomes one."""
    assert split_key(key) == path


words = st.sampled_from(
    (
        *(
            "+",
            "~",
            "=",
            ".",
            "/",
            "[",
            "]",
            "{",
            "}",
            "'",
            '"',
            "$",
            "\\",
            ":",
            " ",
            "-",
        ),
        *(
            "seed",
            "model",
            "layers",
            "betas",
            "optimizer",
            "trainer",
            "scheduler",
            "table",
        ),
        *("0", "1", "007", "null", "{k: 1}", "[1]", "${", "env:", "\udcff"),
    )
)


@given(st.lists(st.lists(words, max_size=9).map("".join), max_size=3))
@example(["+model.layers.x=1"])
@example(["scheduler=null", "scheduler.type.x=1"])
@example(["+model.a=1", "+model.a.b=1"])
def test_anything_applies_or_is_refused(arguments: list[str]) -> None:
    """No arguments make anything but a config or an error of ours."""
    values = {
        "experiment_name": "a",
        "model": {"type": "m", "layers": [1, {"k": 2}], "table": {"0": "a"}},
        "data": {"dataset_name": "d"},
        "optimizer": {"betas": [0.5, 0.6]},
    }
    manager = ConfigurationManager(environ={})
    try:
        config = manager.create_config(values, arguments)
    except MtfConfigError as error:
        str(error).encode()
    else:
        assert ExperimentConfig.model_validate(config.model_dump()) == config


@given(st.text())
def test_any_text_parses_or_is_refused(argument: str) -> None:
    """No text makes the parser raise anything but its own error."""
    try:
        assert isinstance(parse(argument, frozenset({"g"})), Override)
    except OverrideError as error:
        str(error).encode()
