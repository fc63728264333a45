import json
import subprocess
import sys
import threading
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from mtf_gridsearch import search as search_module
from mtf_gridsearch.distributions import uniform
from mtf_gridsearch.errors import GridError, InvalidExperimentsError, NamingError
from mtf_gridsearch.grid import ParameterGrid
from mtf_gridsearch.identity import identity_of
from mtf_gridsearch.naming import ExperimentNaming, NamingStrategy
from mtf_gridsearch.search import ParameterGridSearch

BASE = {"experiment_name": "digits", "optimizer": {"lr": 0.1}, "model": {"depth": 1}}


class Model(BaseModel):
    depth: int = Field(default=1, ge=1)


class Config(BaseModel):
    experiment_name: str = "digits"
    seed: int = 0
    model: Model = Model()


def grid(**parameters: list[Any]) -> ParameterGrid:
    """Return a grid; ``__`` in a key is a dot."""
    result = ParameterGrid("g")
    for key, values in parameters.items():
        result.add_parameter(key.replace("__", "."), values)
    return result


def test_experiments_of_a_mapping() -> None:
    """Each combination is an experiment: named, with its parameters, of the base's type."""
    search = ParameterGridSearch(BASE).add_grid(grid(optimizer__lr=[0.1, 0.2]))
    first, second = search.plan()
    assert first.experiment_name == f"digits__{identity_of({'optimizer.lr': 0.1})}"
    assert first.identity == identity_of({"optimizer.lr": 0.1})
    assert first.parameters == {"optimizer.lr": 0.1}
    assert second.config == {
        "experiment_name": second.experiment_name,
        "optimizer": {"lr": 0.2},
        "model": {"depth": 1},
    }
    assert search.generate_experiments() == [first.config, second.config]
    assert search.plan() is search.plan()


def test_experiments_of_a_model() -> None:
    """What comes out of a pydantic model is of its class, validated."""
    search = ParameterGridSearch(Config()).add_grid(grid(model__depth=[2, 3]))
    configs = search.generate_experiments()
    assert [type(config) for config in configs] == [Config, Config]
    assert [config.model.depth for config in configs] == [2, 3]
    assert [c.experiment_name for c in configs] == [
        e.experiment_name for e in search.plan()
    ]
    assert search.plan()[0].model_dump(mode="json")["model"] == {"depth": 2}


def test_all_are_checked_before_any_comes_out() -> None:
    """One that does not fit, the last, and none is handed out; each reason comes once."""
    search = ParameterGridSearch(Config())
    search.add_grid(grid(seed=list(range(50)), model__depth=[1, 0]))
    search.add_grid(grid(model__dept=[1, 2]))
    with pytest.raises(InvalidExperimentsError) as caught:
        search.generate_experiments()
    assert caught.value.num_invalid == 52
    problems = caught.value.problems
    assert [p.key for p in problems] == ["model.depth", "model.dept"]
    assert "found 0" in problems[0].reason
    assert "did you mean 'model.depth'?" in problems[1].reason
    assert problems[0].parameters == "seed=0, model.depth=0"


def test_problems_shown_are_few_and_short() -> None:
    """A thousand reasons are counted and the first twenty shown, none a wall of text."""
    bad = ParameterGrid("g").add_parameter(
        "model.depth", [f"x{i}" * 99 for i in range(99)]
    )
    with pytest.raises(InvalidExperimentsError) as caught:
        ParameterGridSearch(BASE).add_grid(bad).plan()
    assert (caught.value.num_invalid, len(caught.value.problems)) == (99, 20)
    assert len(str(caught.value)) < 10_000


def test_a_combination_comes_once() -> None:
    """The same combination from two grids, in another order or type, is one experiment."""
    search = ParameterGridSearch(BASE)
    search.add_grid(grid(optimizer__lr=[1, 2], model__depth=[1]))
    search.add_grid(grid(model__depth=[1, 2], optimizer__lr=[1.0]))
    assert [e.parameters for e in search.plan()] == [
        {"optimizer.lr": 1, "model.depth": 1},
        {"optimizer.lr": 2, "model.depth": 1},
        {"model.depth": 2, "optimizer.lr": 1.0},
    ]


@pytest.mark.parametrize("naming", NamingStrategy)
def test_names_are_unique_and_parse_back(naming: NamingStrategy) -> None:
    """Whatever the strategy, the search gives back what each name was made of."""
    base = {"optimizer": {"lr": None}, "model": {"depth": None}}
    search = ParameterGridSearch(base, "a__b", naming)
    search.add_grid(grid(optimizer__lr=[0.1, 1, True], model__depth=["1", None, [1]]))
    planned = search.plan()
    assert (
        len({experiment.experiment_name for experiment in planned}) == len(planned) == 9
    )
    for experiment in planned:
        parsed = search.parse_experiment_name(experiment.experiment_name)
        assert parsed.base == "a__b"
        assert json.dumps(dict(parsed.parameters)) == json.dumps(experiment.parameters)
        assert search.get_experiment_name(experiment.config) == experiment.experiment_name
        assert search.naming is naming
    with pytest.raises(NamingError, match="of no experiment"):
        search.parse_experiment_name("a__b")


def test_short_names_are_readable_alone() -> None:
    """With the search's keys, a short name parses back without its index."""
    search = ParameterGridSearch(BASE, naming="short").add_grid(grid(optimizer__lr=[0.5]))
    search.add_grid(grid(model__depth=[2]))
    names = [experiment.experiment_name for experiment in search.plan()]
    assert names == ["digits__lr-0.5", "digits__depth-2"]
    parsed = ExperimentNaming.parse_experiment_name(names[0], keys=search.keys)
    assert parsed.parameters == {"optimizer.lr": 0.5}


def test_sequential_names_count_in_order() -> None:
    """They are numbered as the search lists them."""
    search = ParameterGridSearch(BASE, naming=NamingStrategy.SEQUENTIAL)
    search.add_grid(grid(model__depth=[1, 2]))
    names = [experiment.experiment_name for experiment in search.plan()]
    assert names == ["digits_0001", "digits_0002"]


@pytest.mark.parametrize("naming", NamingStrategy)
def test_known_names_are_kept(naming: NamingStrategy) -> None:
    """An extended search keeps the names it gave, and gives none of them again."""
    old = ParameterGridSearch(BASE, naming=naming).add_grid(grid(model__depth=[2, 4]))
    known = {e.identity: e.experiment_name for e in old.plan()}
    new = ParameterGridSearch(BASE, naming=naming)
    new.add_grid(grid(model__depth=[1, 2, 3, 4]))
    planned = new.plan(known)
    assert [e.experiment_name for e in planned][1::2] == list(known.values())
    assert len({e.experiment_name for e in planned}) == 4
    assert [e.config["experiment_name"] for e in planned] == [
        e.experiment_name for e in planned
    ]
    assert new.get_experiment_name(planned[0].config) == planned[0].experiment_name
    assert new.plan(known) is planned


def test_a_name_that_another_has_is_not_given_again() -> None:
    """A readable name that stands for other parameters gives way to the identity."""
    search = ParameterGridSearch(BASE, naming="short").add_grid(grid(model__depth=[2]))
    (experiment,) = search.plan({"0123456789abcdef": "digits__depth-2"})
    assert experiment.experiment_name == f"digits__{experiment.identity}"


def test_config_finds_its_name() -> None:
    """A config is found by its content, whatever it is called; a stranger is refused."""
    search = ParameterGridSearch(Config()).add_grid(grid(seed=[1, 2]))
    config = search.generate_experiments()[1]
    renamed = config.model_copy(update={"experiment_name": "other"})
    assert search.get_experiment_name(renamed) == config.experiment_name
    with pytest.raises(NamingError, match="no experiment of the search digits"):
        search.get_experiment_name(Config(seed=3))


def test_experiment_of_given_parameters() -> None:
    """Parameters from elsewhere, as an optimiser's, make an experiment as well, or fail."""
    search = ParameterGridSearch(Config()).add_grid(
        ParameterGrid("g").add_parameter("seed", uniform(0, 1))
    )
    experiment = search.experiment({"seed": 5})
    assert experiment.config.seed == 5
    assert experiment.experiment_name == f"digits__{identity_of({'seed': 5})}"
    with pytest.raises(InvalidExperimentsError, match="1 experiment does not fit"):
        search.experiment({"model.depth": 0})
    with pytest.raises(GridError, match="no key"):
        search.experiment({"a b": 0})
    counted = ParameterGridSearch(Config(), naming="sequential")
    assert counted.experiment({"seed": 5}, number=3).experiment_name == "digits_0003"
    with pytest.raises(NamingError, match="needs its number"):
        counted.experiment({"seed": 5})


def test_name_of_the_search() -> None:
    """It is the base's unless one is given; there must be one, and it must be a name."""
    assert ParameterGridSearch(BASE).name == "digits"
    assert ParameterGridSearch(BASE, "other").name == "other"
    with pytest.raises(NamingError, match="give the search a name"):
        ParameterGridSearch({"lr": 1})
    with pytest.raises(NamingError, match="is no name"):
        ParameterGridSearch(BASE, "../x")
    with pytest.raises(NamingError, match="is no name"):
        ParameterGridSearch({"experiment_name": 3})
    with pytest.raises(ValueError, match="is not a valid NamingStrategy"):
        ParameterGridSearch(BASE, naming="nice")


def test_empty_grids_are_refused() -> None:
    """A grid without parameters, one that leaves nothing, and no grid at all."""
    search = ParameterGridSearch(BASE)
    with pytest.raises(GridError, match="g: is empty: give it parameters"):
        search.add_grid(grid())
    with pytest.raises(GridError, match="constraints and exclusions leave nothing"):
        search.add_grid(grid(model__depth=[1]).where("model.depth > 1"))
    with pytest.raises(GridError, match="digits: has no grid"):
        search.plan()
    with pytest.raises(TypeError, match="not \\[1\\]"):
        search.add_grid([1])  # type: ignore[arg-type]


def test_searches_have_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """More experiments than a search can have are refused, with what to do."""
    monkeypatch.setattr(search_module, "_MAX_EXPERIMENTS", 3)
    search = ParameterGridSearch(BASE).add_grid(grid(model__depth=[1, 2, 3]))
    assert len(search.plan()) == 3
    search.add_grid(grid(model__depth=[4]))
    with pytest.raises(GridError, match=r"has 4 experiments, more than 3: .*sample"):
        search.plan()


def test_distributions_need_a_sample() -> None:
    """A grid that draws cannot be planned; its sample can."""
    drawn = ParameterGrid("d").add_parameter("optimizer.lr", uniform(0, 1))
    search = ParameterGridSearch(BASE).add_grid(drawn)
    with pytest.raises(GridError, match="use sample"):
        search.plan()
    listed = ParameterGrid("r").include(*drawn.sample(3, seed=0))
    assert len(ParameterGridSearch(BASE).add_grid(listed).plan()) == 3


def test_base_digest() -> None:
    """The digest stands for the base's content: not its name, nor the order of keys."""
    digest = ParameterGridSearch(BASE).base_digest
    turned = dict(reversed(BASE.items())) | {"experiment_name": "x"}
    assert ParameterGridSearch(turned).base_digest == digest
    assert ParameterGridSearch(BASE | {"model": {"depth": 2}}).base_digest != digest
    assert len(digest) == 64
    assert ParameterGridSearch(Config()).base_digest == (
        ParameterGridSearch(Config().model_dump()).base_digest
    )


def test_plain_form() -> None:
    """All that defines a search is plain, the base of a model as well."""
    search = ParameterGridSearch(Config(), naming="short").add_grid(grid(seed=[1]))
    assert search.to_plain() == {
        "name": "digits",
        "naming": "short",
        "grids": [{"name": "g", "parameters": {"seed": [1]}}],
        "base_digest": search.base_digest,
        "base_class": f"{Config.__module__}:Config",
        "base": {"experiment_name": "digits", "seed": 0, "model": {"depth": 1}},
    }
    assert [g.name for g in search.grids] == ["g"]


def test_other_machines_give_the_same_names() -> None:
    """Another process, with another hash seed, plans the same names in the same order."""
    program = """
from mtf_gridsearch.grid import ParameterGrid
from mtf_gridsearch.search import ParameterGridSearch
grid = ParameterGrid("g").add_parameter("b", [1, 2]).add_parameter("a", ["x", 0.5])
search = ParameterGridSearch({"experiment_name": "d", "a": None, "b": 0}).add_grid(grid)
print([e.experiment_name for e in search.plan()])
"""
    here = ParameterGrid("g").add_parameter("b", [1, 2]).add_parameter("a", ["x", 0.5])
    base = {"experiment_name": "d", "a": None, "b": 0}
    names = [e.experiment_name for e in ParameterGridSearch(base).add_grid(here).plan()]
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        encoding="utf-8",
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "77"},
    )
    assert done.stdout.strip() == str(names)


def test_light_import() -> None:
    """Grids and searches load nothing heavy."""
    program = (
        "import sys, mtf_gridsearch.search, mtf_gridsearch.search_file;"
        "print({'numpy', 'optuna', 'rich', 'matplotlib', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        encoding="utf-8",
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == "set()"


def test_equal_configs_are_told() -> None:
    """Different parameters that make one config are named, equal values of two kinds too."""

    class Config(BaseModel):
        experiment_name: str = "a"
        lr: float = 0.1
        depth: int = 1

    for base in (Config(), {"experiment_name": "a", "lr": 0.1, "depth": 1}):
        search: ParameterGridSearch[Any] = ParameterGridSearch(base)
        search.add_grid(ParameterGrid("lrs").add_parameter("lr", [0.1, 0.2]))
        assert search.duplicates() == []
        search.add_grid(ParameterGrid("depths").add_parameter("depth", [1, 2]))
        (group,) = search.duplicates()
        assert [e.parameters for e in group] == [{"lr": 0.1}, {"depth": 1}]
        assert len({e.experiment_name for e in group}) == 2


class Upper(BaseModel):
    model_config = ConfigDict(alias_generator=str.upper)

    experiment_name: str = "a"
    lr: float = 0.1
    depth: int = 1


class Aliased(BaseModel):
    experiment_name: str = Field("a", alias="experimentName")
    lr: float = 0.1
    depth: int = 1


@pytest.mark.parametrize(
    ("kind", "key"), [(Upper, "EXPERIMENT_NAME"), (Aliased, "experimentName")]
)
def test_the_name_counts_not_whatever_it_is_written_as(
    kind: type[BaseModel], key: str
) -> None:
    """Digest, duplicates and names by content leave it out, by an alias as well."""
    lr, depth = ("LR", "DEPTH") if kind is Upper else ("lr", "depth")
    search = ParameterGridSearch(kind.model_validate({key: "b", depth: 2, lr: 0.2}))
    other = ParameterGridSearch(kind.model_validate({key: "c", depth: 2, lr: 0.2}))
    assert (search.name, search.name_key) == ("b", key)
    assert search.base_digest == other.base_digest
    search.add_grid(grid(lr=[0.2])).add_grid(grid(depth=[2]))
    assert len(search.duplicates()) == 1
    config = kind.model_validate({key: "other", depth: 2, lr: 0.2})
    assert search.get_experiment_name(config) == search.plan()[0].experiment_name


def test_a_copy_may_have_another_name() -> None:
    """The grids and the base are the same, and the first keeps its name."""
    search = ParameterGridSearch(BASE).add_grid(grid(model__depth=[2]))
    other = search.copy("other")
    assert (search.name, other.name) == ("digits", "other")
    assert other.plan()[0].experiment_name.startswith("other__")
    with pytest.raises(NamingError):
        search.copy("no name")


class Filled(BaseModel):
    epochs: int = 10
    warmup: float | None = None
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @model_validator(mode="after")
    def _fill(self) -> "Filled":
        if self.warmup is None:
            self.warmup = self.epochs * 0.1
        return self


def test_what_is_made_again_is_told_once() -> None:
    """With the values of one experiment, and the number of others; a mapping makes none."""
    search = ParameterGridSearch(Filled(), "f").add_grid(grid(epochs=[10, 20, 30]))
    name = search.plan()[1].experiment_name
    (note,) = search.made_again(search.plan())
    assert note == (
        f"warmup follows from other values: it is made again (2.0 instead of 1.0 in {name} "
        "and 1 more); set warmup as a parameter to keep it."
    )
    kept = ParameterGridSearch(Filled(), "f").add_grid(grid(epochs=[20], warmup=[1.0]))
    assert kept.made_again(kept.plan()) == []
    mapping = ParameterGridSearch(BASE).add_grid(grid(model__depth=[2]))
    assert mapping.made_again(mapping.plan()) == []


def test_configs_that_cannot_be_copied_are_made_anew() -> None:
    """A caller gets its own, as of any model."""
    search = ParameterGridSearch(Filled(), "f").add_grid(grid(epochs=[20]))
    (config,) = search.generate_experiments()
    assert config is not search.plan()[0].config
    assert (config.epochs, config.warmup) == (20, 2.0)
