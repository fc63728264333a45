import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mtf_config import (
    ConfigFileError,
    ConfigurationManager,
    ConfigValidator,
    ExperimentConfig,
    ModelConfig,
    OverrideError,
    diff,
)
from mtf_config.manager import to_yaml

MINIMAL: dict[str, Any] = {
    "experiment_name": "digits",
    "model": {"type": "mlp"},
    "data": {"dataset_name": "digits"},
}
GOOD_FILE = "{experiment_name: a, model: {type: m}, data: {dataset_name: d}}\n"
MAX_INT = 2**63 - 1

# ------------------------------------------------------------ any config there can be

NASTY = [
    *(
        "${x}",
        r"\${",
        r"\\${seed}",
        "${",
        "$${a}",
        "${env:HOME}",
        "on",
        "no",
        "~",
        "null",
    ),
    *(
        "1e-4",
        "1_000",
        "0x1F",
        "0o17",
        "017",
        "12:00:00",
        "1:30",
        ".inf",
        "-.INF",
        ".nan",
    ),
    *("true", "True", "y", "=", "<<", "!!python/object:os.system", "&a", "*a", "? a"),
    *("- a", "# no comment", "a: b", "a #b", "", " ", " a", "a ", "\n", "\n\n", "a\n"),
    *("\na", "\ta", "a\r\nb", "a\x85b", "\u2028", "\ufeff", "\x00", "\x1b[31m", "\x7f"),
    *("\U0001f600", "e\u0301", "'", '"', "'\"", "---", "...", "%YAML 1.2", "@", "`"),
    *("{", "}", "[", "]", ",", "|", ">", ">-\n a", "key", "2001-01-01", "???", "\\"),
    *("a" * 3000, "word " * 300, "_self_", "defaults", "1" * 500, "0" * 20, "+1", "1."),
]
TEXT = st.one_of(st.sampled_from(NASTY), st.text())
NAMES = TEXT.filter(lambda name: name and "." not in name)
EXTRAS = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-(2**1024) + 1, 2**1024 - 1),
        st.floats(allow_nan=False),
        TEXT,
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
FILLED = TEXT.filter(bool)
COUNTS = st.integers(1, MAX_INT)
AMOUNTS = st.integers(0, MAX_INT)
FRACTIONS = st.floats(0, 1, exclude_max=True)
POSITIVE = st.floats(0, exclude_min=True, allow_infinity=False)
NOT_NEGATIVE = st.floats(0, allow_infinity=False)
FLAGS = st.booleans()


def section(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw any of *keys*."""
    return st.fixed_dictionaries({}, optional=keys)


MODELS = st.builds(
    lambda extra, known: extra | known,
    st.dictionaries(NAMES, EXTRAS, max_size=4).map(
        lambda extra: {k: v for k, v in extra.items() if k not in ModelConfig.model_fields}
    ),
    st.fixed_dictionaries(
        {"type": FILLED},
        optional={"hidden_size": COUNTS, "num_layers": COUNTS, "dropout": FRACTIONS,
                  "activation": FILLED},
    ),
)  # fmt: skip
VALUES = st.fixed_dictionaries(
    {
        "experiment_name": st.from_regex(
            r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True
        ),
        "model": MODELS,
        "data": st.fixed_dictionaries(
            {"dataset_name": FILLED},
            optional={"root": st.none() | FILLED, "train_split": FILLED,
                      "val_split": st.none() | FILLED, "num_workers": st.integers(0, 256),
                      "pin_memory": FLAGS},
        ),
    },
    optional={
        "description": TEXT,
        "entry_point": st.sampled_from([None, "train.py", "a/b.py", "a.b:c"]),
        "seed": st.integers(0, 2**32 - 1),
        "training": section(
            max_epochs=COUNTS, batch_size=COUNTS, gradient_accumulation_steps=COUNTS,
            max_grad_norm=st.none() | POSITIVE, use_amp=FLAGS,
        ),
        "optimizer": section(
            type=FILLED, lr=POSITIVE, weight_decay=NOT_NEGATIVE, eps=POSITIVE,
            betas=st.tuples(FRACTIONS, FRACTIONS), momentum=FRACTIONS,
        ),
        "scheduler": st.none()
        | section(type=FILLED, warmup_steps=AMOUNTS, min_lr=NOT_NEGATIVE),
        "logging": section(
            use_wandb=FLAGS, wandb_project=st.none() | FILLED,
            wandb_entity=st.none() | FILLED, log_scalars_every_n_steps=COUNTS,
            log_images_every_n_steps=st.none() | COUNTS, log_gradients=FLAGS,
            log_model_parameters=FLAGS,
        ),
        "checkpoint": section(save_every_n_epochs=COUNTS, keep_last_n=COUNTS),
        "slurm": st.none()
        | section(
            account=st.none() | FILLED, partition=st.none() | FILLED, nodes=COUNTS,
            qos=st.none() | FILLED, constraint=st.none() | FILLED, requeue=FLAGS,
            ntasks_per_node=COUNTS, cpus_per_task=COUNTS, gpus_per_node=AMOUNTS,
            gpu_type=st.none() | FILLED,
            mem=st.none() | st.sampled_from(["1", "32G", "9999M"]),
            time=st.sampled_from(["1", "12:00:00", "1-0", "1-12:30:01"]),
        ),
    },
)  # fmt: skip


def keys_of(value: Any, at: str) -> Iterator[str]:
    """List every dotted key in *value*."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for name, item in items:
        key = f"{at}.{name}" if at else str(name)
        yield key
        yield from keys_of(item, key)


def with_extra(**extra: Any) -> dict[str, Any]:
    """Give the model further keys."""
    return {**MINIMAL, "model": {"type": "mlp", **extra}}


def test_infinity_is_no_null() -> None:
    """Infinity in a key of the model is neither equal to null nor named like it."""
    infinite, null = (
        ExperimentConfig.model_validate(with_extra(clip=value))
        for value in (math.inf, None)
    )
    assert infinite != null
    assert infinite.content_hash() != null.content_hash()
    assert [str(difference) for difference in diff(infinite, null)] == [
        "model.clip: inf -> None"
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=VALUES)
@example(with_extra(x=[math.inf, -math.inf, -0.0, 5e-324, 1e16, 1e22]))
@example(with_extra(**{"x" * 3000: 1, "y": {"k" * 200: {"l" * 200: []}}}))
@example(with_extra(**{"1": {"0": [1]}, "null": None, "<<": {"<<": {}}, "${a}": "${a}"}))
@example(with_extra(copy=1, model_dump=2, __class__=3, model_fields_set=4, self=5, cls=6))
@example(with_extra(defaults=["a"], x=[[], {}, [[]], [{}], "", None]))
@example({**MINIMAL, "description": "\r\n"})
def test_every_config_reads_back_equal(tmp_path: Path, values: dict[str, Any]) -> None:
    """Save and load give back the same values, and each says where it came from."""
    manager = ConfigurationManager(tmp_path, environ={})
    config = ExperimentConfig.model_validate(values)
    manager.save(config, "saved.yaml")
    loaded = manager.load("saved.yaml")
    # By repr, which tells 1 from 1.0 and infinity from None.
    assert repr(loaded.model_dump()) == repr(config.model_dump())
    assert loaded == config
    assert hash(loaded) == hash(config)
    assert loaded.content_hash() == config.content_hash()
    assert diff(loaded, config) == ()
    assert manager.save(loaded, "again.yaml").read_bytes() == (
        Path(tmp_path, "saved.yaml").read_bytes()
    )
    for key in keys_of(loaded.model_dump(mode="json"), ""):
        assert loaded.provenance(key).source == "saved.yaml"
        config.provenance(key)
    assert pickle.loads(pickle.dumps(loaded)) == config  # noqa: S301
    ConfigValidator().validate_config(loaded)


@given(left=VALUES, right=VALUES)
@settings(max_examples=50, deadline=None)
def test_diff_is_empty_exactly_for_equal_configs(
    left: dict[str, Any], right: dict[str, Any]
) -> None:
    """No difference is missed and none invented, whatever the values."""
    a, b = map(ExperimentConfig.model_validate, (left, right))
    assert (diff(a, b) == ()) == (a == b)
    assert len(diff(a, b)) == len(diff(b, a))


ANYTHING = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.binary(), TEXT),
        *(st.just(object()), st.just("\ud800"), st.complex_numbers(), st.dates()),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(
            st.sampled_from([*ExperimentConfig.model_fields, "trainer", "type", "lr",
                             "betas", "x", "", "a.b", 1, None, "\ud800"]),
            inner, max_size=4,
        ),
    ),
    max_leaves=15,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(values=ANYTHING)
def test_nothing_but_our_errors_comes_out(values: Any) -> None:
    """Any Python value makes a config or a report that can be read."""
    manager = ConfigurationManager(environ={})
    for candidate in (values, {**MINIMAL, "model": values}, {**MINIMAL, "x": values}):
        (result,) = manager.create_batch([candidate])
        assert result.is_valid == (result.config is not None and not result.errors)
        assert result.is_valid or all(map(str, result.errors))
        assert result.is_valid or result.errors


# ------------------------------------------------------------ loading and making


def test_paths_are_relative_to_the_project(tmp_path: Path) -> None:
    """Neither the working directory nor its changes count."""
    Path(tmp_path, "configs").mkdir()
    Path(tmp_path, "configs", "a.yaml").write_text(GOOD_FILE, "utf-8")
    manager = ConfigurationManager(str(tmp_path))
    config = manager.load(Path("configs", "a.yaml"))
    assert str(config.provenance("model.type")) == "configs/a.yaml:1:36"
    absolute = manager.load(Path(tmp_path, "configs", "a.yaml"))
    assert absolute == config
    assert absolute.provenance("model").source == str(tmp_path / "configs/a.yaml")


def test_two_loads_share_nothing(tmp_path: Path) -> None:
    """Files are cached, the lists in them are not."""
    text = GOOD_FILE.replace("type: m", "type: m, xs: [1, {a: [2]}]")
    Path(tmp_path, "a.yaml").write_text(text, "utf-8")
    manager = ConfigurationManager(tmp_path)
    first: Any = manager.load("a.yaml")
    first.model.xs[1]["a"].append(3)
    second: Any = manager.load("a.yaml")
    assert second.model.xs == [1, {"a": [2]}]


def test_environment_is_the_one_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests and services decide what `${env:...}` reads; else it is the process's."""
    monkeypatch.setenv("MTF_TEST_SEED", "7")
    values = {**MINIMAL, "seed": "${env:MTF_TEST_SEED}"}
    assert ConfigurationManager().create_config(values).seed == 7
    given_one = ConfigurationManager(environ={"MTF_TEST_SEED": "8"})
    assert given_one.create_config(values).seed == 8


def test_create_config_takes_overrides_and_placeholders() -> None:
    """A mapping is treated as a file is."""
    values = {**MINIMAL, "description": "lr ${optimizer.lr}"}
    config = ConfigurationManager().create_config(values, ["optimizer.lr=0.5"])
    assert config.description == "lr 0.5"
    with pytest.raises(OverrideError, match=r"did you mean optimizer\.lr\?"):
        ConfigurationManager().create_config(values, ["optimizer.l_r=0.5"])


def test_one_text_is_no_list_of_overrides(tmp_path: Path) -> None:
    """The caller's slip is named, instead of read letter by letter."""
    manager = ConfigurationManager(tmp_path)
    with pytest.raises(TypeError, match="not one text"):
        manager.load("a.yaml", "seed=1")
    with pytest.raises(TypeError, match="not one text"):
        manager.create_config(MINIMAL, "seed=1")


# ------------------------------------------------------------ batches


def test_a_batch_of_files_reports_each_in_order(tmp_path: Path) -> None:
    """N files give N results, whatever is wrong with some, and nothing is raised."""
    texts: dict[str, str | bytes] = {
        "good.yaml": GOOD_FILE,
        "warned.yaml": GOOD_FILE.replace("type: m", "type: m, droput: 1"),
        "syntax.yaml": "a: [1\n",
        "bytes.yaml": b"\xff",
        "schema.yaml": "seed: -1\n",
        "circle.yaml": "defaults: [circle]\n",
        "placeholder.yaml": "seed: ${seed}\n",
    }
    for name, text in texts.items():
        Path(tmp_path, name).write_bytes(text.encode() if isinstance(text, str) else text)
    Path(tmp_path, "folder.yaml").mkdir()
    names = [*texts, "folder.yaml", "missing.yaml", "nul\0.yaml", "good.yaml"]
    results = ConfigurationManager(tmp_path).load_batch(names, ["++model.heads=2"])
    assert len(results) == len(names)
    assert [result.is_valid for result in results] == [True, True, *[False] * 8, True]
    assert [len(result.warnings) for result in results][:2] == [0, 1]
    for name, result in zip(names, results, strict=True):
        places = {problem.place.source for problem in result.errors if problem.place}
        assert result.is_valid or name in places


def test_a_batch_of_mappings_reports_each_in_order() -> None:
    """N mappings give N results; holes and nonsense are results as well."""
    batch: list[Any] = [MINIMAL, None, {}, {1: 2}, 5, {**MINIMAL, "seed": -1}, MINIMAL]
    results = ConfigurationManager().create_batch(iter(batch))
    valid = [result.is_valid for result in results]
    assert valid == [True, False, False, False, False, False, True]
    assert all(result.errors for result in results if not result.is_valid)
    assert results[0].config == results[-1].config


def test_an_override_that_fails_fails_in_every_result() -> None:
    """A batch stays whole when its overrides are wrong."""
    results = ConfigurationManager().create_batch([MINIMAL] * 3, ["sede=1"])
    assert [r.problems[0].message for r in results] == [
        "no such key; did you mean seed?"
    ] * 3
    assert ConfigurationManager().create_batch([]) == ()


# ------------------------------------------------------------ saving


@pytest.fixture
def config() -> ExperimentConfig:
    """Make a small config."""
    return ConfigurationManager(environ={}).create_config(MINIMAL)


def test_save_makes_folders_and_returns_the_path(
    tmp_path: Path, config: ExperimentConfig
) -> None:
    """One call files an experiment."""
    manager = ConfigurationManager(tmp_path)
    written = manager.save(config, "experiments/digits/config.yaml")
    assert written == tmp_path / "experiments/digits/config.yaml"
    assert manager.load(written) == config
    assert [p.name for p in written.parent.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("fault", ["fsync", "replace"])
def test_a_save_cut_short_leaves_the_old_file_alone(
    tmp_path: Path,
    config: ExperimentConfig,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """Whatever fails before the rename, the file is the old one and nothing else lies."""
    manager = ConfigurationManager(tmp_path)
    path = manager.save(config, "a.yaml")
    before = path.read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, fault, fail)
        patch.setattr(Path, fault, fail, raising=False)
        with pytest.raises(KeyboardInterrupt):
            manager.save(config.model_copy(update={"seed": 1}), "a.yaml")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.yaml"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_saved_file_respects_the_umask(
    tmp_path: Path, config: ExperimentConfig, mask: int, mode: int
) -> None:
    """The file is as readable as any other file of the user."""
    old = os.umask(mask)
    try:
        path = ConfigurationManager(tmp_path).save(config, "a.yaml")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == mode


def test_what_could_not_be_read_back_is_not_saved(tmp_path: Path) -> None:
    """A config larger than a config file may be is refused before the file is touched."""
    manager = ConfigurationManager(tmp_path)
    config = manager.create_config({**MINIMAL, "description": "x" * 2**20})
    with pytest.raises(ConfigFileError, match=r"a\.yaml: larger than"):
        manager.save(config, "a.yaml")
    assert list(tmp_path.iterdir()) == []


def test_save_says_what_the_system_said(tmp_path: Path, config: ExperimentConfig) -> None:
    """A file in the place of a folder is the system's error."""
    Path(tmp_path, "file").touch()
    with pytest.raises(OSError, match="file"):
        ConfigurationManager(tmp_path).save(config, "file/a.yaml")


def test_saved_text_is_for_people(config: ExperimentConfig) -> None:
    """Every value stands in it once, in the order of the schema, on its own line."""
    lines = to_yaml(config).splitlines()
    assert lines[:4] == [
        "experiment_name: digits", "description: ''", "entry_point: null", "seed: 0",
    ]  # fmt: skip
    assert "  betas: [0.9, 0.999]" in lines
    assert "  eps: 1.0e-08" in lines
    assert "scheduler: null" in lines


def test_content_hash_does_not_depend_on_the_process(config: ExperimentConfig) -> None:
    """Neither the seed of Python's hashes nor the locale changes it."""
    code = (
        "import sys; from mtf_config import ConfigurationManager as M\n"
        f"print(M(environ={{}}).create_config({MINIMAL!r}).content_hash())"
    )
    for seed in ("1", "2"):
        environ = os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": "C"}
        out = subprocess.run(
            [sys.executable, "-c", code], env=environ, check=True, capture_output=True
        )
        assert out.stdout.decode().strip() == config.content_hash()


def test_content_hash_does_not_depend_on_formatting(tmp_path: Path) -> None:
    """Flow or block style, quotes, comments, order and other spellings of a number."""
    block = (
        "# a comment\n"
        "data:\n  dataset_name: 'd'\n"
        "optimizer:\n  lr: 1e-3\n  betas:\n  - 0.90\n  - .999\n"
        "model:\n  xs:\n  - 0x10\n  - 1.50\n  type: m\n"
        'experiment_name: "b"\n'
    )
    flow = (
        "{experiment_name: a, model: {type: m, xs: [16, 1.5]}, data: {dataset_name: d},"
        " optimizer: {betas: [0.9, 0.999], lr: 0.001}}"
    )
    Path(tmp_path, "b.yaml").write_text(block, "utf-8")
    Path(tmp_path, "f.yaml").write_text(flow, "utf-8")
    manager = ConfigurationManager(tmp_path)
    one, other = manager.load("b.yaml"), manager.load("f.yaml")
    assert one.content_hash() == other.content_hash()
