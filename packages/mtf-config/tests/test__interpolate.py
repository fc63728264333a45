from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtf_config import ConfigurationManager, ExperimentConfig, MtfConfigError
from mtf_config._interpolate import escape, resolve
from mtf_config._tree import Tree, plain_origins
from mtf_config.origin import Origin

Write = Callable[[str, str | bytes], Path]
Load = Callable[..., ExperimentConfig]
Refusal = Callable[..., str]
BASE: dict[str, Any] = {
    "experiment_name": "a",
    "data": {"dataset_name": "d"},
    "seed": 7,
    "optimizer": {"lr": 0.5, "betas": [0.1, 0.2]},
}


def model(environ: dict[str, str] | None = None, /, **extra: Any) -> dict[str, Any]:
    """Return the model's extra keys after placeholders are resolved."""
    values = BASE | {"model": {"type": "m", **extra}}
    config = ConfigurationManager(environ=environ or {}).create_config(values)
    assert config.model.model_extra is not None
    return config.model.model_extra


def refused(environ: dict[str, str] | None = None, /, **extra: Any) -> str:
    """Return what is said of placeholders that cannot be resolved."""
    with pytest.raises(MtfConfigError) as caught:
        model(environ, **extra)
    str(caught.value).encode()
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${seed}", 7),
        ("${ seed }", 7),
        ("${optimizer.lr}", 0.5),
        ("${optimizer.betas}", [0.1, 0.2]),
        ("${optimizer.betas.1}", 0.2),
        ("${training.max_epochs}", 100),
        ("${trainer.max_epochs}", 100),
        ("${model.hidden_size}", 512),
        ("${optimizer.eps}", 1e-8),
        ("${scheduler}", None),
        ("${optimizer}", {"lr": 0.5, "betas": [0.1, 0.2]}),
        ("${checkpoint}", {"save_every_n_epochs": 1, "keep_last_n": 3}),
        ("a${seed}b${seed}", "a7b7"),
        ("${seed}${seed}", "77"),
        ("${seed} ", "7 "),
        ("${training.use_amp}!", "true!"),
        ("${optimizer.lr}x", "0.5x"),
        (r"\${seed}", "${seed}"),
        (r"\\${seed}", "\\7"),
        (r"\\\${seed}", r"\${seed}"),
        (r"\${a\${b}", "${a${b}"),
        (r"\${", "${"),
        (r"\n$ {x} $x {y}", r"\n$ {x} $x {y}"),
        ("$${seed}", "$7"),
        ("${nothing:-5}", 5),
        ("${nothing:-}", None),
        ("${nothing:-a b}", "a b"),
        ("${nothing:-1e-3}", 1e-3),
        ("${scheduler:-x}", "x"),
        ("${seed:-5}", 7),
        ("${env:NUMBER}", 42),
        ("${env:TEXT}", "hello"),
        ("${env:MISSING:-3}", 3),
        ("${env:EMPTY:-3}", 3),
        ("${env:EMPTY:-}", None),
        ("x${env:MISSING:-}y", "xy"),
        ("x${env:MISSING:-a:-b}y", "xa:-by"),
        ("n=${env:NUMBER}", "n=42"),
        ("${env:TRICKY}", "${seed}"),
    ],
)
def test_resolves(text: str, value: object) -> None:
    """A placeholder alone keeps the type of what it names; inside text it is text."""
    environ = {"NUMBER": "42", "TEXT": "hello", "EMPTY": "", "TRICKY": "${seed}"}
    found = model(environ, x=text)["x"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "${sed}",
            "code: model.x: ${sed} names no key of the config; did you mean seed?",
        ),
        ("${optimizer.betas.7}", "${optimizer.betas.7} names no key"),
        ("${optimizer.betas.x}", "${optimizer.betas.x} names no key"),
        ("${scheduler.type}", "${scheduler.type} names no key"),
        ("${seed.x}", "${seed.x} names no key"),
        (f"${{optimizer.{'9' * 5000}}}", "code: model.x: ${optimizer.9999"),
        ("${seed", "a placeholder is not closed, or holds braces"),
        ("${a${seed}}", "a placeholder is not closed, or holds braces"),
        ("${x:-{}}", "a placeholder is not closed, or holds braces"),
        ("${}", "${} is neither ${other.key} nor ${env:NAME}"),
        ("${a b}", r"for the text itself write \${"),
        ("${env:}", "${env:} is neither"),
        ("${env:A B}", "is neither"),
        ("${oc.env:HOME}", "is neither"),
        ("${optimizer}!", "${optimizer} is not one value and cannot stand inside text"),
        ("${scheduler}!", "${scheduler} is not one value"),
        ("${optimizer.betas}!", "is not one value"),
        ("${env:MISSING}", "MISSING is not set, or empty; set it, or give a default: ${"),
        ("${env:EMPTY}", "the environment variable EMPTY is not set, or empty"),
        ("${env:HUGE}", "${env:HUGE}: 1e999 is too large"),
        ("${nothing:-1e999}", "the default in ${nothing:-1e999}: 1e999 is too large"),
        ("${env:BYTES}", "the environment variable BYTES is not UTF-8 text"),
        ("a${env:BYTES}", "the environment variable BYTES is not UTF-8 text"),
        ("${env:HF_TOKEN}", "${env:HF_TOKEN} looks like a secret"),
        ("x${env:WANDB_API_KEY:-y}", "looks like a secret"),
        ("${model}", "circle: model -> model.x -> model"),
        ("${model.x}", "placeholders go in a circle: model.x -> model.x"),
        ("a${model.x}", "placeholders go in a circle: model.x -> model.x"),
    ],
)
def test_refused(text: str, message: str) -> None:
    """What cannot be resolved says where it stands and what to write."""
    environ = {"EMPTY": "", "HUGE": "1e999", "BYTES": os.fsdecode(b"\xff")}
    assert message in refused(environ, x=text)


def test_value_of_a_secret_is_not_shown() -> None:
    """The refusal of a secret does not show it."""
    assert "hunter2" not in refused({"MY_PASSWORD": "hunter2"}, x="${env:MY_PASSWORD}")


def test_circle_is_shown_as_one() -> None:
    """A circle of several keys is shown from where it begins."""
    said = refused(a="${model.b}", b="x${model.c}", c="${model.a}")
    assert "placeholders go in a circle: model.a -> model.b -> model.c -> model.a" in said


def test_default_does_not_break_a_circle() -> None:
    """A circle is an error even where a default stands ready."""
    assert "circle" in refused(a="${model.b:-1}", b="${model.a:-1}")


def test_through_a_placeholder() -> None:
    """A key below a placeholder is found in what the placeholder stands for."""
    found = model(a="${model.z.w}", b="${model.a.k}", c="${model.a.l.1}", d="${model.a.m.0}",
                  z={"w": {"k": 1, "l": [2, 3], "m": {"0": 4}}})  # fmt: skip
    assert (found["b"], found["c"], found["d"]) == (1, 3, 4)
    assert "names no key" in refused(a="${model.z}", z={"w": 1}, b="${model.a.q}")
    assert "names no key" in refused(a="${seed}", b="${model.a.q}")


def test_number_as_key_of_a_mapping() -> None:
    """A number names an item of a list or a key of a mapping, whichever is there."""
    assert model(t={"0": "a"}, l=["b"], x="${model.t.0}${model.l.0}")["x"] == "ab"


def test_resolved_text_is_not_resolved_again() -> None:
    """Text that an escape produced stays text, however it is reached."""
    found = model(
        a={"t": r"\${seed}"}, b="${model.a}", c="${model.b.t}", d="${model.a.t}"
    )
    assert found["b"]["t"] == found["c"] == found["d"] == "${seed}"
    later = model(z="${model.b.t}", b="${model.a}", a={"t": r"\${seed}"})
    assert later["z"] == "${seed}"


def test_values_are_not_shared() -> None:
    """What two placeholders name are two values."""
    found = model(a=[[1]], b="${model.a}", c="${model.a}")
    found["b"][0].append(2)
    assert found["a"] == found["c"] == [[1]]


def test_text_where_the_schema_wants_text() -> None:
    """A variable that looks like a number stays text where text is wanted."""
    values = BASE | {"model": {"type": "${env:N}"}, "description": "${env:N}"}
    config = ConfigurationManager(environ={"N": "5"}).create_config(values)
    assert (config.model.type, config.description) == ("5", "5")


def test_wrong_type_is_found_by_the_schema(write: Write, refusal: Refusal) -> None:
    """A resolved value is checked like one that was written, and names its source."""
    write("c.yaml", "experiment_name: a\nmodel: {type: m}\ndata: {dataset_name: d}\n"
          "seed: ${env:SEED}\n")  # fmt: skip
    said = refusal("c.yaml", environ={"SEED": "x"})
    assert "c.yaml:4:7 (from ${env:SEED}): seed: not valid, found the text 'x'" in said


def test_provenance(write: Write, load: Load) -> None:
    """A resolved value names its place and the placeholder, never the result's."""
    write(
        "c.yaml",
        """\
        experiment_name: a
        model: {type: m, copy: "${optimizer}", text: "x${seed}"}
        data: {dataset_name: d}
        optimizer: {lr: 0.5}
        """,
    )
    config = load("c.yaml", "+model.late=${env:A:-1}")
    places = [
        str(config.provenance(key))
        for key in ("model.copy.lr", "model.text", "model.late")
    ]
    assert places == [
        "c.yaml:2:24 (from ${optimizer})",
        "c.yaml:2:46",
        "override '+model.late=${env:A:-1}' (from ${env:A:-1})",
    ]


def test_place_of_a_fault(write: Write, refusal: Refusal) -> None:
    """A placeholder that fails is found at its file, line, column and full key."""
    write("c.yaml", "experiment_name: a\nmodel:\n  type: m\n  x: [1, '${y}']\n")
    assert refusal("c.yaml").startswith("c.yaml:4:10: model.x.1: ${y} names no key")


def test_circle_in_a_file(write: Write, refusal: Refusal) -> None:
    """A circle in a file is refused at the place where it closes."""
    write("c.yaml", "experiment_name: ${description}\ndescription: ${experiment_name}\n")
    assert refusal("c.yaml").startswith(
        "c.yaml:1:18: experiment_name: placeholders go in a circle: "
    )


def test_long_chain() -> None:
    """A chain of placeholders has a limit, which is not that of Python's stack."""
    chain = {f"k{i}": f"${{model.k{i + 1}}}" for i in range(90)}
    assert model(**chain, k90=1)["k0"] == 1
    chain = {f"k{i}": f"x${{model.k{i + 1}}}" for i in range(5000)}
    assert "placeholders lead on more than 100 times" in refused(**chain, k5000=1)


def test_chain_in_the_other_order() -> None:
    """What is resolved before it is asked for costs no depth."""
    chain = {f"k{i}": f"${{model.k{i - 1}}}" for i in range(1, 5000)}
    assert model(k0=1, **chain)["k4999"] == 1


@pytest.mark.parametrize("text", ["${{model.k{0}}}${{model.k{0}}}", "[list]"])
def test_exponential(text: str) -> None:
    """Text or lists that double at every step end at the limit."""
    bomb: dict[str, Any] = {"k0": "ha"}
    for index in range(40):
        one = f"${{model.k{index}}}"
        bomb[f"k{index + 1}"] = [one, one] if text == "[list]" else one * 2
    assert "expand" in refused(**bomb)


def test_much_text_in_many_places() -> None:
    """Long text repeated thousands of times is refused, alone or inside other text."""
    for copy in ("${model.t}", "x${model.t}"):
        said = refused(t="x" * 60_000, many=[copy] * 20_000)
        assert "placeholders expand to more than 50000 values" in said


def test_depth_that_grows() -> None:
    """Sections nested into each other by placeholders end at the limit of depth."""
    bomb: dict[str, Any] = {"k0": {"x": 1}}
    for index in range(1000):
        value: Any = f"${{model.k{index}}}"
        for _ in range(25):
            value = [value]
        bomb[f"k{index + 1}"] = value
    assert "nests the config more than 32 levels deep" in refused(**bomb)


def test_long_runs_cost_linear_time() -> None:
    """Megabytes of backslashes or placeholders are read once, not once for each byte."""
    slashes = "\\" * 1_000_000
    assert model(x=f"{slashes}${{seed}}")["x"] == "\\" * 500_000 + "7"
    assert escape(slashes) == slashes
    assert model(x="${seed}" * 60_000)["x"] == "7" * 60_000
    assert "not closed" in refused(x="${seed" * 100_000)


@given(st.text(st.sampled_from("\\${}ab:.-"), max_size=30))
@example("${a${b}")
@example("\\\\${")
def test_escaped_text_resolves_to_itself(text: str) -> None:
    """Escaping makes any text its own value, placeholders and backslashes in it too."""
    tree = Tree()
    tree.data = {"x": escape(text)}
    tree.origins = plain_origins(tree.data, (), Origin("f"))
    resolve(tree, {})
    assert tree.data == {"x": text}


pieces = st.sampled_from(
    (
        *("${", "}", "\\", "model", ".", "a", "b", "env:", ":-", "A", "seed", " ", "0"),
        *("${model.a}", "${model.b}", "${model}", "${env:A}", "${optimizer.betas.0}"),
    )
)
texts = st.lists(pieces, max_size=8).map("".join)


@given(texts, st.lists(texts, max_size=3) | texts | st.dictionaries(texts, texts))
def test_any_placeholders_resolve_or_are_refused(first: str, second: Any) -> None:
    """No text makes anything but a config or an error of ours."""
    try:
        found = model({"A": "1"}, a=first, b=second)
    except MtfConfigError as error:
        str(error).encode()
    else:
        assert {"a", "b"} <= found.keys()


def test_keys_are_not_resolved(tmp_path: Path) -> None:
    """Placeholders are for values: the name of a key is kept, and saved, as it is."""
    manager = ConfigurationManager(tmp_path, environ={})
    values = BASE | {"model": {"type": "m", "x": {"${seed}": 1}}}
    config = manager.create_config(values)
    manager.save(config, "c.yaml")
    assert manager.load("c.yaml") == config
    assert config.model.model_extra == {"x": {"${seed}": 1}}
