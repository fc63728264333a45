import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from mtf_gridsearch import _yaml, search_file
from mtf_gridsearch.bayes import BayesianSearch
from mtf_gridsearch.distributions import choice, int_uniform, loguniform, uniform
from mtf_gridsearch.errors import ExpressionError, GridError
from mtf_gridsearch.grid import ParameterGrid
from mtf_gridsearch.naming import NamingStrategy
from mtf_gridsearch.search import ParameterGridSearch

BASE = {
    "experiment_name": "digits",
    "optimizer": {"lr": 0.1, "wd": 0.0, "betas": [0.9, 0.99]},
    "model": {"type": "mlp", "depth": 1, "width": 4},
    "on": None,
}


class Config(BaseModel):
    experiment_name: str = "x"
    lr: float = 0.1


def whole_grid() -> ParameterGrid:
    """Return a grid with everything that can be listed."""
    return (
        ParameterGrid("first", "größe: on")
        .add_parameter("optimizer.lr", [1e-5, 0.1])
        .add_parameter("model.type", ["mlp", "linear"])
        .add_linked(
            {"model.depth": [1, 2], "model.width": [8, 16]},
            only_when="model.type == 'mlp'",
        )
        .add_parameter("on", ["1e-4", None, True, "on"])
        .add_parameter("optimizer.betas", [[0.9, 0.99], [0.8, 0.9]])
        .where("optimizer.lr * model.depth < 0.2")
        .exclude({"on": "on", "model.type": "linear"})
        .include({"optimizer.lr": 0.5})
    )


def test_saved_searches_read_back(tmp_path: Path) -> None:
    """A search that was saved gives the same experiments, names, digest and file."""
    search = ParameterGridSearch(BASE, "other", NamingStrategy.SHORT)
    search.add_grid(whole_grid())
    search.add_grid(
        (whole_grid() + ParameterGrid("a").add_parameter("optimizer.lr", [3.0]))
        * ParameterGrid("b").add_parameter("optimizer.wd", [0.1, 0.2])
    )
    path = tmp_path / "new" / "search_config.yaml"
    search_file.write(path, search)
    definition = search_file.read(path)
    again = definition.search()
    assert again.plan() == search.plan()
    assert len(again.plan()) > 50
    assert again.base_digest == search.base_digest
    assert (definition.name, definition.naming) == ("other", NamingStrategy.SHORT)
    search_file.write(tmp_path / "again.yaml", again)
    assert (tmp_path / "again.yaml").read_bytes() == path.read_bytes()


def test_distributions_read_back(tmp_path: Path) -> None:
    """Distributions are saved as well, conditions with them."""
    grid = (
        ParameterGrid("d")
        .add_parameter("optimizer.lr", loguniform(1e-5, 0.1))
        .add_parameter("optimizer.wd", uniform(0, 1))
        .add_parameter("model.type", choice(["mlp", "linear"]))
        .add_parameter("model.depth", int_uniform(1, 3), only_when="model.type == 'mlp'")
    )
    search_file.write(tmp_path / "s.yaml", ParameterGridSearch(BASE).add_grid(grid))
    (again,) = search_file.read(tmp_path / "s.yaml").grids
    assert again.sample(20, 0) == grid.sample(20, 0)


def test_the_manual_is_true(tmp_path: Path) -> None:
    """The example in the module's docstring is a search of six experiments."""
    text = str(search_file.__doc__).partition("::\n\n")[2].partition("\n\nIn place")[0]
    path = tmp_path / "s.yaml"
    path.write_text("\n".join(line[4:] for line in text.splitlines()), "utf-8")
    planned = search_file.read(path).search().plan()
    assert [experiment.experiment_name for experiment in planned] == [
        "digits__depth-1__type-mlp__lr-0.001",
        "digits__depth-2__type-mlp__lr-0.001",
        "digits__type-linear__lr-0.001",
        "digits__depth-1__type-mlp__lr-0.01",
        "digits__depth-2__type-mlp__lr-0.01",
        "digits__lr-0.5",
    ]


def test_another_base_may_be_given(tmp_path: Path) -> None:
    """A file without a base takes one, of any type; without any it says so."""
    path = tmp_path / "s.yaml"
    path.write_text("grids: [{name: g, parameters: {lr: [1e-3, 1e-2]}}]", "utf-8")
    definition = search_file.read(path)
    assert (definition.name, definition.base) == (None, None)
    configs = definition.search(Config()).generate_experiments()
    assert [config.lr for config in configs] == [0.001, 0.01]
    with pytest.raises(GridError, match="search: has no base config"):
        definition.search()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", r"s\.yaml:\d:\d: is not YAML"),
        ("[]", "is not a mapping"),
        ("grid: []", r"s\.yaml: 'grid' is not known; did you mean 'grids'\?"),
        ("name: 3", "name: 3 is not text"),
        ("base: 3", "base: write a mapping"),
        ("naming: nice", "naming: 'nice' is none of hash_based, parameter_based, short"),
        ("grids: {}", "grids: write a list"),
        ("grids: [1]", r"grids\[0\]: is no grid"),
        (
            "grids: [{name: g, parameters: {optimizer.lr: 0.1}}]",
            r"s\.yaml: grids\[0\]: g: optimizer\.lr: give a list of values",
        ),
        (
            "grids: [{name: g, parameters: {a: [1e-4, 0.0001]}}]",
            r"grids\[0\]: g: a: the value 0\.0001 stands twice",
        ),
        ("grids: [{name: g, parameters: {a: [.nan]}}]", "g: a: NaN"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, reason: str) -> None:
    """What is no search is refused with its file and place."""
    path = tmp_path / "s.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(GridError, match=reason):
        search_file.read(path)


def test_errors_keep_their_class(tmp_path: Path) -> None:
    """A condition in a file that cannot be read is an error of conditions, with its place."""
    path = tmp_path / "s.yaml"
    path.write_text(
        "grids: [{name: g, parameters: {a: [1]}, where: ['a.b() > 1']}]", "utf-8"
    )
    with pytest.raises(ExpressionError, match=r"s\.yaml: grids\[0\]: a\.b\(\) > 1: "):
        search_file.read(path)


def test_empty_file_defines_nothing(tmp_path: Path) -> None:
    """An empty file is a search without grids, which cannot be planned."""
    path = tmp_path / "s.yaml"
    path.write_text("", "utf-8")
    definition = search_file.read(path)
    assert definition.grids == ()
    with pytest.raises(GridError, match="has no grid"):
        definition.search(BASE).plan()


def test_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save that fails loses nothing."""
    path = tmp_path / "s.yaml"
    search = ParameterGridSearch(BASE).add_grid(whole_grid())
    search_file.write(path, search)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        search_file.write(path, search.add_grid(whole_grid()))
    assert path.read_bytes() == before


def test_what_a_bayesian_search_lacks(tmp_path: Path) -> None:
    """Without a base or a grid the error says what to write."""
    pytest.importorskip("optuna")
    path = tmp_path / "s.yaml"
    section = "bayesian: {metric: loss, mode: min, num_trials: 2}\nname: a\n"
    path.write_text(section, "utf-8")
    with pytest.raises(GridError, match="no base config"):
        search_file.read(path).bayesian_search()
    with pytest.raises(GridError, match="no grid"):
        search_file.read(path).bayesian_search({"lr": 1})
    path.write_text(section + "entry_point: 3\n", "utf-8")
    with pytest.raises(GridError, match="entry_point: 3 is not text"):
        search_file.read(path)


def test_a_saved_search_over_a_model_is_over_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class reads the base again, so that what only it takes is taken."""
    (tmp_path / "saved_configs.py").write_text(
        "from pydantic import BaseModel\n"
        "class Opt(BaseModel):\n    depth: int = 1\n"
        "class Config(BaseModel):\n    n: int = 1\n    kw: dict[str, int] = {}\n"
        "    opt: Opt | None = None\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    base = importlib.import_module("saved_configs").Config()
    path = tmp_path / "s.yaml"
    try:
        grid = ParameterGrid("g").add_parameter("kw.x", [1, 2])
        grid.add_parameter("opt.depth", [2]).add_parameter("n", ["3"])
        search = ParameterGridSearch(base, "s").add_grid(grid)
        search_file.write(path, search)
        definition = search_file.read(path)
        assert definition.base_class == "saved_configs:Config"
        assert definition.search().plan() == search.plan()
        other = definition.search({"n": "5"}).plan()
        assert other[0].config == type(base)(n=3, kw={"x": 1}, opt={"depth": 2})
        with pytest.raises(GridError, match="saved_configs:Config refuses it"):
            definition.search({"n": "many"})
        assert definition.search(type(base)(n=5)).plan() == other

        space = ParameterGrid("g").add_parameter("opt.depth", int_uniform(1, 3))
        options: dict[str, Any] = {"metric": "l", "mode": "min", "num_trials": 2}
        bayesian = BayesianSearch(base, space, name="s", **options)
        _yaml.write_atomically(path, _yaml.dump(bayesian.to_plain()))
        again = search_file.read(path).bayesian_search()
        assert again.to_plain() == bayesian.to_plain()
    finally:
        del sys.modules["saved_configs"]


def test_a_class_that_nobody_can_import_is_refused(tmp_path: Path) -> None:
    """A search over a class of a script is run by the script alone, and says so."""
    path = tmp_path / "s.yaml"
    path.write_text("{name: a, base: {lr: 1}, base_class: '__main__:C'}", "utf-8")
    with pytest.raises(GridError, match="run the script that defines it"):
        search_file.read(path).search()
    path.write_text("{name: a, base: {lr: 1}, base_class: 3}", "utf-8")
    with pytest.raises(GridError, match="base_class: 3 is not text"):
        search_file.read(path)
