import dataclasses
import enum
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)
from typing_extensions import TypedDict

from mtf_gridsearch._base import UnfitError, base_of
from mtf_gridsearch.errors import GridError

MAPPING = {
    "experiment_name": "digits",
    "optimizer": {"lr": 0.1, "betas": [0.9, 0.99], "nesterov": False},
    "model": {"type": "mlp", "depth": 1},
    "scheduler": None,
    "seed": 0,
}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Optimizer(Strict):
    lr: Annotated[float, Field(gt=0)] = 0.1
    betas: Annotated[tuple[float, float], BeforeValidator(tuple)] = (0.9, 0.99)


class Lax(BaseModel):
    width: int = 4
    inner: "Lax | None" = None


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    type: str = "mlp"


class Sgd(BaseModel):
    kind: Literal["sgd"] = "sgd"
    momentum: float = 0.0


class Adam(BaseModel):
    kind: Literal["adam"] = "adam"
    beta: float = 0.9


@dataclasses.dataclass
class Data:
    name: str = "digits"
    workers: int = 0


class Shape(TypedDict):
    width: int


class Config(BaseModel):
    experiment_name: str = "digits"
    seed: Annotated[int, Field(ge=0)] = 0
    optimizer: Optimizer = Optimizer()
    model: Open = Open()
    lax: Lax | None = None
    choice: Annotated[Sgd | Adam, Field(discriminator="kind")] = Sgd()
    tags: dict[str, int] = {}
    layers: dict[str, Lax] = {}
    data: Data = Data()
    shape: Shape | None = None
    anything: Any = None
    patience: int = Field(default=3, alias="earlyPatience")

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.seed == 13:
            message = "13 is unlucky"
            raise ValueError(message)
        if self.seed == 14:
            raise KeyError("worse")  # noqa: EM101 - as careless code does
        return self


def faults(base: Any, parameters: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what forbids *parameters*."""
    with pytest.raises(UnfitError) as caught:
        base_of(base).applied(parameters, "name")
    return caught.value.faults


def test_mapping_gets_its_parameters() -> None:
    """The copy has the parameters and the name; the base and the values stay as they were."""
    base = base_of(MAPPING)
    betas = [0.8, 0.9]
    given = {"optimizer.lr": 1, "optimizer.betas": betas, "scheduler": {"type": "cosine"}}
    config = base.applied(given, "new")
    assert config == {
        "experiment_name": "new",
        "optimizer": {"lr": 1, "betas": [0.8, 0.9], "nesterov": False},
        "model": {"type": "mlp", "depth": 1},
        "scheduler": {"type": "cosine"},
        "seed": 0,
    }
    config["optimizer"]["betas"].append(3)
    assert betas == [0.8, 0.9]
    assert base.plain == MAPPING
    assert base.name == "digits"
    assert base_of({"a": 1}).applied({"a": 2}, "new") == {"a": 2}


@pytest.mark.parametrize(
    ("parameters", "key", "reason"),
    [
        (
            {"optimizer.rl": 1},
            "optimizer.rl",
            "no such key; did you mean 'optimizer.lr'?",
        ),
        ({"lr": 1}, "lr", "did you mean 'optimizer.lr'?"),
        ({"seed.x": 1}, "seed.x", "no such key"),
        ({"nothing.x.y": 1}, "nothing.x.y", "no such key"),
        ({"seed": "1"}, "seed", "'1' is text, but in the base config it is a number: 0"),
        ({"seed": True}, "seed", "True is true or false, but"),
        ({"optimizer.nesterov": 1}, "optimizer.nesterov", "a number, but"),
        (
            {"model.type": ["a"]},
            "model.type",
            "a list, but in the base config it is text",
        ),
        ({"optimizer.betas": 1}, "optimizer.betas", "it is a list"),
        ({"model": 1}, "model", "it is a mapping"),
        ({"model": {"typ": "a"}}, "model.typ", "did you mean 'model.type'?"),
        ({"model": {"type": "a", "depth": "a"}}, "model.depth", "is text, but"),
    ],
)
def test_what_does_not_fit_a_mapping(
    parameters: dict[str, Any], key: str, reason: str
) -> None:
    """Keys that the base lacks, and values of another kind, are faults with a hint."""
    ((found, text),) = faults(MAPPING, parameters)
    assert found == key
    assert reason in text


def test_null_goes_with_everything() -> None:
    """Null may be set anywhere, and anything where null is."""
    config = base_of(MAPPING).applied({"seed": None, "scheduler": 1}, "n")
    assert (config["seed"], config["scheduler"]) == (None, 1)


def test_model_gets_its_parameters() -> None:
    """The copy is a valid model of the same class; the base stays as it was."""
    base = Config(earlyPatience=7, data=Data(workers=2))
    before = base.model_dump()
    config = base_of(base).applied(
        {
            "optimizer.lr": 1,
            "optimizer.betas": [0.8, 0.9],
            "model.heads": 4,
            "lax.inner.width": 8,
            "choice": {"kind": "adam", "beta": 0.5},
            "tags.any": 3,
            "layers.first.width": 2,
            "data.name": "moons",
            "shape.width": 5,
            "anything.at.all": [1],
        },
        "new",
    )
    assert type(config) is Config
    assert config.experiment_name == "new"
    assert config.optimizer == Optimizer(lr=1.0, betas=(0.8, 0.9))
    assert type(config.optimizer.lr) is float
    assert config.model.model_extra == {"heads": 4}
    assert config.lax == Lax(inner=Lax(width=8))
    assert config.choice == Adam(beta=0.5)
    assert (config.tags, config.layers) == ({"any": 3}, {"first": Lax(width=2)})
    assert config.data == Data("moons", 2)
    assert config.shape == {"width": 5}
    assert config.anything == {"at": {"all": [1]}}
    assert config.patience == 7
    assert base.model_dump() == before


def test_discriminator_of_a_union_may_change() -> None:
    """A field that only another member of a union has is known."""
    base = Config(choice=Adam())
    assert base_of(base).applied({"choice.beta": 0.5}, "n").choice == Adam(beta=0.5)
    assert base_of(base).applied({"patience": 4}, "n").patience == 4


@pytest.mark.parametrize(
    ("parameters", "key", "reason"),
    [
        (
            {"optimizer.rl": 1},
            "optimizer.rl",
            "no such key; did you mean 'optimizer.lr'?",
        ),
        ({"lr": 1}, "lr", "did you mean 'optimizer.lr'?"),
        ({"optimiser.lr": 1}, "optimiser.lr", "did you mean 'optimizer.lr'?"),
        ({"lax.widht": 1}, "lax.widht", "did you mean 'lax.width'?"),
        ({"lax": {"widht": 1}}, "lax.widht", "did you mean 'lax.width'?"),
        ({"lax": {"inner": {"widht": 1}}}, "lax.inner.widht", "no such key"),
        ({"layers.first.widht": 1}, "layers.first.widht", "no such key"),
        ({"layers": {"first": {"widht": 1}}}, "layers.first.widht", "no such key"),
        ({"data.worker": 1}, "data.worker", "did you mean 'data.workers'?"),
        ({"shape.height": 1}, "shape.height", "no such key"),
        ({"seed.x": 1}, "seed.x", "no such key"),
        ({"choice.gamma": 1}, "choice.gamma", "no such key"),
        ({"earlyPatience": 1}, "earlyPatience", "no such key"),
        ({"optimizer.lr": -1.0}, "optimizer.lr", "greater than 0, found -1.0"),
        ({"optimizer.lr": "fast"}, "optimizer.lr", "valid number, found 'fast'"),
        ({"optimizer.betas": [1.0]}, "optimizer.betas.1", "Field required"),
        ({"seed": -1}, "seed", "greater than or equal to 0, found -1"),
        ({"seed": 13}, "", "13 is unlucky"),
        ({"seed": 14}, "", "KeyError: 'worse'"),
    ],
)
def test_what_does_not_fit_a_model(
    parameters: dict[str, Any], key: str, reason: str
) -> None:
    """Unknown keys, ignored by lax schemas, and bad values are faults of their key."""
    ((found, text),) = faults(Config(), parameters)
    assert found == key
    assert reason in text


def test_every_fault_is_named() -> None:
    """Two keys that are wrong are two faults."""
    found = faults(Config(), {"seed": -1, "optimizer.lr": -1.0})
    assert [key for key, _ in found] == ["seed", "optimizer.lr"]
    assert len(faults(MAPPING, {"a": 1, "b": 2})) == 2


def test_model_without_a_name() -> None:
    """A model that has no experiment_name gets none."""
    assert base_of(Lax()).applied({"width": 3}, "n") == Lax(width=3)
    assert base_of(Lax()).name is None
    assert base_of(Config()).name == "digits"
    assert base_of(Lax()).plain == {"width": 4, "inner": None}


def test_what_is_no_base() -> None:
    """A base is a mapping of plain values or a pydantic model."""
    with pytest.raises(TypeError, match="not a list"):
        base_of([1])
    with pytest.raises(GridError, match=r"base config\.a: .*object"):
        base_of({"a": object()})


class Aliased(BaseModel):
    """A field that is read by its alias alone."""

    learning: float = Field(0.1, alias="learning-rate")


def test_what_is_read_by_its_alias_is_written_by_it() -> None:
    """Otherwise every experiment would run with the default."""
    base = base_of(Aliased.model_validate({}))

    assert base.by_alias
    assert base.plain == {"learning-rate": 0.1}


class Secret(BaseModel):
    """A field that is not written as it is."""

    token: SecretStr = SecretStr("x")


class Hidden(BaseModel):
    """A field that is not written at all."""

    path: str = Field("a", exclude=True)


@pytest.mark.parametrize("config", [Secret(), Hidden(path="b")])
def test_what_does_not_read_back_equal_is_refused(config: BaseModel) -> None:
    """A secret, or a field left out, would reach no experiment."""
    with pytest.raises(GridError, match="does not read back equal"):
        base_of(config)


class Inner(BaseModel):
    """Something below a model."""

    layers: list[int] = [1]
    depth: int = 1


class Outer(BaseModel):
    """Something with sections."""

    lr: float = 0.1
    sub: Inner = Inner()
    subs: list[Inner] = []


def test_configs_share_nothing_with_the_base() -> None:
    """What is changed in one is changed in no other."""
    config = Outer()
    base = base_of(config)

    one, two = base.applied({"lr": 1.0}, "one"), base.applied({"lr": 2.0}, "two")
    one.sub.layers.append(5)

    assert config.sub.layers == two.sub.layers == [1]


def test_unknown_keys_in_lists_of_models_are_told() -> None:
    """A key inside a list is looked up in the schema, too."""
    with pytest.raises(UnfitError, match=r"subs\.0\.dd"):
        base_of(Outer()).applied({"subs": [{"dd": 5}]}, "x")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(BaseModel):
    width: int = 1
    depth: int = 1


class Exact(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    experiment_name: str = "a"
    colour: Colour = Colour.RED
    betas: tuple[float, float] = (0.9, 0.999)
    data: Path = Path("data")
    tags: frozenset[str] = frozenset({"x"})
    size: Size = Size(width=5, depth=7)
    options: dict[str, int] = {"a": 1, "b": 2}
    number: int = 1


def test_strict_models_take_what_they_take_from_json() -> None:
    """Enumerations, tuples, sets and paths are given in their plain form; text is no number."""
    base = base_of(Exact())
    parameters = {"colour": "blue", "betas": [0.5, 0.6], "data": "d", "tags": ["y"]}
    applied = base.applied(parameters, "b")
    assert applied == Exact(
        experiment_name="b",
        colour=Colour.BLUE,
        betas=(0.5, 0.6),
        data=Path("d"),
        tags=frozenset({"y"}),
    )
    for key, value in (("number", "3"), ("colour", "green"), ("betas", [1.0])):
        with pytest.raises(UnfitError) as caught:
            base.applied({key: value}, "b")
        assert [fault[0].split(".")[0] for fault in caught.value.faults] == [key]
    with pytest.raises(UnfitError, match=r"should be 'red' or 'blue', found 'green'"):
        base.applied({"colour": "green"}, "b")


def test_a_mapping_never_drops_what_it_does_not_name() -> None:
    """Neither keys of a mapping nor fields that would get their defaults; a value may."""
    base = base_of({"model": {"type": "mlp", "depth": 2}, "seed": 1})
    with pytest.raises(UnfitError, match=r"model\.depth: 2 of the base .* be lost"):
        base.applied({"model": {"type": "linear"}}, "b")
    whole = {"type": "linear", "depth": 3}
    assert base.applied({"model": whole}, "b")["model"] == whole

    model = base_of(Exact())
    with pytest.raises(UnfitError, match=r"size\.depth: 7 .* would become 1"):
        model.applied({"size": {"width": 2}}, "b")
    applied = model.applied({"size": {"width": 2, "depth": 7}, "options": {"a": 3}}, "b")
    assert isinstance(applied, Exact)
    assert (applied.size, applied.options) == (Size(width=2, depth=7), {"a": 3})


def test_nan_in_a_base_is_named() -> None:
    """The error says at which key it stands."""
    with pytest.raises(GridError, match=r"base config\.optimizer\.lr: NaN"):
        base_of({"optimizer": {"lr": math.nan}})

    class Rated(BaseModel):
        rates: dict[str, float]

    with pytest.raises(GridError, match=r"base config\.rates\.low: NaN"):
        base_of(Rated(rates={"low": math.nan}))


class Either(BaseModel):
    plain: Sgd | Adam = Sgd()
    told: Annotated[Sgd | Adam, Field(discriminator="kind")] = Sgd()
    several: list[Sgd | Adam] = []


@pytest.mark.parametrize(
    ("parameters", "key"),
    [
        ({"plain.beta": 0.5}, "plain.beta"),
        ({"told.beta": 0.5}, "told.beta"),
        ({"told.kind": "sgd", "told.beta": 0.5}, "told.beta"),
        ({"told": {"kind": "sgd", "momentum": 0.1, "beta": 0.5}}, "told.beta"),
        ({"several": [{"kind": "sgd", "momentum": 0.1, "beta": 1.0}]}, "several.0.beta"),
    ],
)
def test_what_only_another_member_of_a_union_has_is_refused(
    parameters: dict[str, Any], key: str
) -> None:
    """A value that would be dropped is an error that says which member is in force."""
    with pytest.raises(UnfitError, match="Sgd here") as caught:
        base_of(Either()).applied(parameters, "e")
    assert [found for found, _ in caught.value.faults] == [key]


def test_an_experiment_may_choose_the_member_of_a_union() -> None:
    """What it sets of the member that it chooses is there."""
    config = base_of(Either()).applied({"told.kind": "adam", "told.beta": 0.5}, "e")
    assert config.told == Adam(beta=0.5)
