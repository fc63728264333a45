import dataclasses
import enum
import math
import threading
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import (
    AfterValidator,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    RootModel,
    SecretStr,
    Tag,
    computed_field,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from typing_extensions import TypedDict

from mtf_gridsearch._base import UnfitError
from mtf_gridsearch._model_base import base_of
from mtf_gridsearch.errors import GridError


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


def test_model_without_a_name() -> None:
    """A model that has no experiment_name gets none."""
    assert base_of(Lax()).applied({"width": 3}, "n") == Lax(width=3)
    assert base_of(Lax()).name is None
    assert base_of(Config()).name == "digits"
    assert base_of(Lax()).plain == {"width": 4, "inner": None}


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


class Untold(BaseModel):
    lr: float = 0.1

    @model_serializer
    def _fail(self) -> dict[str, Any]:
        if self.lr > 1:
            raise KeyError("lr")  # noqa: EM101 - as careless code does
        return {"lr": self.lr}


class OneWay(BaseModel):
    lr: float = 0.1

    @field_serializer("lr")
    def _tell(self, value: float) -> str:
        return f"about {value}"


@pytest.mark.parametrize("config", [Secret(), Hidden(path="b"), Untold(lr=2.0), OneWay()])
def test_what_does_not_read_back_equal_is_refused(config: BaseModel) -> None:
    """A secret, or a field left out or written for people, would reach no experiment."""
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
    """No field gets its default for a mapping that leaves it out; a whole value may be set."""
    model = base_of(Exact())
    with pytest.raises(UnfitError, match=r"size\.depth: 7 .* would become 1"):
        model.applied({"size": {"width": 2}}, "b")
    applied = model.applied({"size": {"width": 2, "depth": 7}, "options": {"a": 3}}, "b")
    assert isinstance(applied, Exact)
    assert (applied.size, applied.options) == (Size(width=2, depth=7), {"a": 3})


def test_nan_in_a_base_is_named() -> None:
    """The error says at which key of a model it stands."""

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


class Renamed(BaseModel):
    lr: float = Field(0.1, serialization_alias="LR")


class Sectioned(BaseModel):
    opt: Renamed = Renamed.model_validate({})


class NotWritten(BaseModel):
    lr: float = Field(0.1, exclude=True)


class Rounded(BaseModel):
    lr: float = 0.1

    @field_serializer("lr")
    def _round(self, value: float) -> float:
        return round(value, 1)


class Placed(BaseModel):
    lr: float = Field(0.1, validation_alias=AliasPath("opt", "lr"))


@pytest.mark.parametrize(
    ("base", "key"),
    [
        (Renamed.model_validate({}), "lr"),
        (Sectioned(), "opt.lr"),
        (Aliased.model_validate({}), "learning"),
    ],
)
def test_a_base_of_defaults_is_written_by_what_is_read(base: BaseModel, key: str) -> None:
    """Each experiment reads back, though the base would do so in a form that is not read."""
    made = base_of(base)
    config = made.applied({key: 0.01}, "e")
    assert config != base
    assert type(base).model_validate(made.plain_of(config)) == config


@pytest.mark.parametrize(
    ("base", "value", "back"),
    [
        (NotWritten.model_validate({}), 0.5, "0.1"),
        (Rounded(), 0.01, "0.0"),
    ],
)
def test_an_experiment_that_does_not_read_back_is_refused(
    base: BaseModel, value: float, back: str
) -> None:
    """A base of defaults reads back; an experiment that would get another value does not."""
    ((key, reason),) = faults(base, {"lr": value})
    assert key == "lr"
    assert f"{value} would be read as {back} from its config.yaml" in reason


class Loose(BaseModel):
    """Its defaults are of other types than its fields, as pydantic lets them be."""

    model_config = ConfigDict(use_enum_values=True)

    lr: float = 0.1
    data: Path = "data"  # type: ignore[assignment]
    betas: tuple[float, ...] = [0.9, 0.99]  # type: ignore[assignment]
    colour: Colour = Colour.RED


class LooseBelow(BaseModel):
    lr: float = 0.1
    one: Loose = Loose()
    several: list[Loose] = [Loose()]


@pytest.mark.parametrize("key", ["lr", "one.lr"])
def test_a_default_is_of_the_type_of_its_field(key: str) -> None:
    """A default that is text is the path, and so on, that its field reads, everywhere."""
    made = base_of(LooseBelow())
    config = made.applied({key: 0.5}, "e")
    assert isinstance(config, LooseBelow)
    assert config == LooseBelow.model_validate(made.plain_of(config))
    for each in (config.one, config.several[0]):
        assert (each.data, each.betas) == (Path("data"), (0.9, 0.99))
        assert each.colour == "red"  # type: ignore[comparison-overlap]


class Dense(BaseModel):
    kind: Literal["dense"] = "dense"


class Stored(BaseModel):
    kind: Literal["stored"] = "stored"
    data: Path = "data"  # type: ignore[assignment]


class Choice(BaseModel):
    model: Dense | Stored = Dense()


def test_a_default_of_a_chosen_member_is_of_the_type_of_its_field() -> None:
    """What an experiment has is what is read of its config.yaml."""
    config = base_of(Choice()).applied({"model.kind": "stored"}, "e")
    assert config == Choice(model=Stored(data=Path("data")))


class Undeclared(BaseModel):
    lr: float = 0.1
    seed: int = None  # type: ignore[assignment]


def test_a_default_that_its_field_refuses_is_named() -> None:
    """As None is by a field that is declared as a number."""
    wrong = (
        r"seed: Input should be a valid integer, found None: give it as its field reads"
    )
    with pytest.raises(GridError, match=wrong):
        base_of(Undeclared())


class Shadowing(BaseModel):
    """By its name a field is read as a further key, and equal by its default."""

    model_config = ConfigDict(extra="allow")

    sizes: list[int] = Field([1], alias="Sizes")


def test_a_further_key_is_no_field() -> None:
    """Written by its name, a field would be there twice."""
    made = base_of(Shadowing(Sizes=[1, 2]))
    config = made.applied({"sizes": [3]}, "e")
    assert config == Shadowing(Sizes=[3])
    assert made.plain_of(config) == {"Sizes": [3]}


class Worse(BaseModel):
    """Its values are other than its fields would read of them."""

    model_config = ConfigDict(str_strip_whitespace=True)

    lr: float = 0.1
    text: str = " a "
    bucket: Path = "s3://bucket/x"  # type: ignore[assignment]
    here: Path = "./x"  # type: ignore[assignment]
    sub: Inner = {"dept": 5}  # type: ignore[assignment]
    whole: Annotated[int, AfterValidator(lambda value: value // 8 * 8)] = 100
    number: float = "0.1"  # type: ignore[assignment]
    anything: Any = Path("x")


@pytest.mark.parametrize(
    "name", ["text", "bucket", "here", "sub", "whole", "number", "anything"]
)
def test_a_default_that_would_be_another_value_is_refused(name: str) -> None:
    """A type that is read is no reason to lose a value."""
    better: dict[str, Any] = {
        "text": "a",
        "bucket": Path("x"),
        "here": Path("x"),
        "sub": Inner(),
        "whole": 96,
        "number": 0.1,
        "anything": "x",
    }
    base = Worse.model_construct(**{**better, name: Worse.model_fields[name].default})
    with pytest.raises(GridError, match=f"{name}: .* would be read as"):
        base_of(base)
    assert base_of(Worse.model_construct(**better)).applied({"lr": 0.5}, "e")


class Following(BaseModel):
    """What it makes of other values is of other types than its fields."""

    width: int = 8
    out: str = "o"
    sizes: tuple[int, ...] = ()
    logs: Path = Field(default_factory=lambda data: f"{data['out']}/logs")  # type: ignore[assignment]

    @model_validator(mode="after")
    def _make(self) -> "Following":
        self.sizes = self.sizes or [self.width] * 2  # type: ignore[assignment]
        return self


class FollowingBelow(BaseModel):
    lr: float = 0.1
    sub: Following = Following()


@pytest.mark.parametrize("prefix", ["", "sub."])
def test_what_follows_is_made_again_whatever_its_type(prefix: str) -> None:
    """Text for a path, or a list for a tuple, is not kept as if a user had set it."""
    base = FollowingBelow() if prefix else Following()
    made = base_of(base)
    config: Any = made.applied({f"{prefix}width": 16, f"{prefix}out": "z"}, "e")
    assert config == type(base).model_validate(made.plain_of(config))
    below = config.sub if prefix else config
    assert (below.sizes, below.logs) == ((16, 16), Path("z/logs"))


def test_a_section_with_loose_defaults_is_set_as_a_whole() -> None:
    """What it leaves out is what it was, of the type of its field or of its default."""
    config: Any = base_of(LooseBelow()).applied({"one": {"lr": 0.5}}, "e")
    assert (config.one.lr, config.one.data) == (0.5, Path("data"))


def test_a_tuple_of_loose_models_may_be_given_as_a_list() -> None:
    """As its items, it is what the field reads of it."""

    class Base(BaseModel):
        lr: float = 0.1
        many: tuple[Loose, ...] = [Loose()]  # type: ignore[assignment]
        names: set[str] = ["b", "a"]  # type: ignore[assignment]

    config: Any = base_of(Base()).applied({"lr": 0.5}, "e")
    assert type(config.many) is tuple
    assert config.many[0].data == Path("data")
    assert config.names == {"a", "b"}


class Sorted(BaseModel):
    """What a validator makes of it follows from what is given alone."""

    tags: set[str] = ["v", "u"]  # type: ignore[assignment]
    shuffle: bool = 1  # type: ignore[assignment]
    count: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _count(cls, values: dict[str, Any]) -> dict[str, Any]:
        if "tags" in values and "count" not in values:
            return {**values, "count": len(values["tags"])}
        if "shuffle" in values and "count" not in values:
            return {**values, "count": 7}
        return values


@pytest.mark.parametrize(
    ("parameters", "count"), [({"tags": ["a"]}, 1), ({"shuffle": False}, 7)]
)
def test_a_default_that_is_equal_is_not_set(
    parameters: dict[str, Any], count: int
) -> None:
    """However it is written: else what follows from what is given would follow from it."""
    config: Any = base_of(Sorted()).applied(parameters, "e")
    assert config.count == count


class Private(BaseModel):
    a: int = 1
    _made: object = PrivateAttr(default_factory=object)


class Keyed(BaseModel):
    """Containers of what is not of the type of its field."""

    lr: float = 0.1
    some: set[Colour] = {"red"}  # type: ignore[arg-type]
    weights: dict[Colour, float] = {"red": 0.5}  # type: ignore[dict-item]
    waits: dict[str, timedelta] = {"enc.0": "PT1S"}  # type: ignore[dict-item]
    layers: list[Private] = [Private()]


def test_containers_of_loose_items_are_read() -> None:
    """Sets, keys of mappings, keys with dots; private attributes do not count."""
    config: Any = base_of(Keyed()).applied({"lr": 0.5}, "e")
    assert config.some == {Colour.RED}
    assert config.weights == {Colour.RED: 0.5}
    assert config.waits == {"enc.0": timedelta(seconds=1)}


def test_a_key_with_a_dot_is_named_with_its_value() -> None:
    """A number of seconds is not written as a duration is."""
    base = Keyed.model_construct(waits={"enc.0": 3600})
    with pytest.raises(GridError, match=r"waits\.enc\.0: 3600 would be read as"):
        base_of(base)


class ReadByAlias(BaseModel):
    n: int = Field(1, alias="N")


class ReadByName(BaseModel):
    n: int


class ReadEither(BaseModel):
    lr: float = 0.1
    model: ReadByAlias | ReadByName


def test_a_member_of_a_union_is_read_as_its_class_says() -> None:
    """By the name of a field only where the class reads that."""
    base = ReadEither(model=ReadByName(n=3))
    assert base_of(base).applied({"lr": 0.5}, "e") == ReadEither(lr=0.5, model=base.model)


def test_what_is_not_read_by_its_name_is_refused() -> None:
    """A field that is read at a path has no place in what is written."""
    ((key, reason),) = faults(Placed.model_validate({}), {"lr": 0.5})
    assert key == "lr"
    assert "it would do nothing, for Placed does not read it by a name" in reason


def test_an_experiment_that_cannot_be_written_is_refused() -> None:
    """Whatever a serializer raises is a fault of the experiment."""
    ((key, reason),) = faults(Untold(), {"lr": 2.0})
    assert key == ""
    assert "its config.yaml could not be read (" in reason


class Warm(BaseModel):
    warmup: int = 0
    tags: list[str] = ["a"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)

    steps: int = 0
    opt: Warm = Warm()
    tags: list[str] = ["a"]
    fixed: tuple[int, ...] = (1, 2)


class FrozenBelow(BaseModel):
    model_config = ConfigDict(frozen=True)

    steps: int = 0
    below: Frozen = Frozen()


@pytest.mark.parametrize("base", [FrozenBelow(), FrozenBelow(below=Frozen(opt=Warm()))])
def test_frozen_models_share_nothing_that_can_be_changed(base: FrozenBelow) -> None:
    """Sections that are not frozen, and lists, are each experiment's own."""
    made = base_of(base)
    one, two = (made.applied({"steps": n}, "e") for n in (1, 2))
    one.below.opt.warmup = 9
    one.below.tags.append("b")
    for other in (two, base, made.applied({"steps": 3}, "e")):
        assert (other.below.opt.warmup, other.below.tags) == (0, ["a"])


def test_a_base_that_is_changed_later_changes_nothing() -> None:
    """What is searched is what was given."""
    config = Warm(warmup=3)
    base = base_of(config)
    config.warmup = 4
    config.tags.append("b")
    assert base.applied({}, "e") == Warm(warmup=3)
    assert base.plain == {"warmup": 3, "tags": ["a"]}


class Schedule(BaseModel):
    steps: int = 100
    warmup: int = Field(default_factory=lambda values: values["steps"] // 10)


class Training(BaseModel):
    schedule: Schedule = Schedule()
    total: int = Field(default_factory=lambda values: values["schedule"].steps * 2)


class Filled(BaseModel):
    steps: int = 100
    warmup: int | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _fill(self) -> "Filled":
        if self.warmup is None:
            self.warmup = self.steps // 10
        return self


def test_what_follows_from_other_values_is_worked_out_again() -> None:
    """At every level; what was set or changed in the base is kept."""
    config = base_of(Training()).applied({"schedule.steps": 1000}, "e")
    assert (config.schedule.warmup, config.total) == (100, 2000)
    assert base_of(Schedule(warmup=7)).applied({"steps": 1000}, "e").warmup == 7
    changed = Training()
    changed.schedule.warmup = 7
    config = base_of(changed).applied({"schedule.steps": 1000}, "e")
    assert (config.schedule.warmup, config.total) == (7, 2000)


def test_only_what_was_set_counts_as_set() -> None:
    """A class that looks at which fields were set sees the base's and the parameters."""
    config = base_of(Schedule(steps=5)).applied({"warmup": 1}, "e")
    assert config.model_fields_set == {"steps", "warmup"}
    assert base_of(Schedule()).applied({"steps": 5}, "e").model_fields_set == {"steps"}


class Outermost(BaseModel):
    steps: int = 100
    below: Filled = Filled()

    @model_validator(mode="after")
    def _fill(self) -> "Outermost":
        if self.below.seed == 0:
            self.below.seed = self.steps // 10
        return self


@pytest.mark.parametrize("base", [Filled(), Schedule(steps=100, warmup=10)])
def test_what_was_set_to_what_follows_is_made_again(base: BaseModel) -> None:
    """Nobody can tell who set it, so it is told of; a parameter is kept."""
    made = base_of(base)
    parameters = {"steps": 1000}
    config = made.applied(parameters, "e")
    assert config.warmup == 100
    assert list(made.made_again(config, parameters)) == [("warmup", "10", "100")]
    parameters = {"steps": 1000, "warmup": 10}
    config = made.applied(parameters, "e")
    assert config.warmup == 10
    assert list(made.made_again(config, parameters)) == []
    parameters = {"steps": 101}
    config = made.applied(parameters, "e")
    assert (config.warmup, list(made.made_again(config, parameters))) == (10, [])


def test_what_a_class_fills_in_a_section_is_made_again() -> None:
    """At every level, by the section or what holds it, gone into or set as a whole."""
    made = base_of(Outermost(below=Filled(steps=7, warmup=3)))
    assert made.applied({"steps": 1000}, "e").below == Filled(steps=7, warmup=3, seed=100)
    whole = made.applied({"steps": 1000, "below.seed": 1}, "e")
    assert whole == Outermost(steps=1000, below=Filled(steps=7, warmup=3, seed=1))
    below = {"steps": 7, "warmup": 3, "seed": 2}
    assert made.applied({"steps": 1000, "below": below}, "e").below.seed == 2
    config = base_of(Outermost()).applied({"steps": 1000, "below.warmup": 1}, "e")
    assert (config.below.seed, config.below.warmup) == (100, 1)
    config = base_of(Outermost()).applied({"below": {"steps": 50}}, "e")
    assert config == Outermost(below=Filled(steps=50, warmup=5, seed=10))


class Mutual(BaseModel):
    lr: float | None = None
    scaled: float | None = None
    size: int = 10

    @model_validator(mode="after")
    def _fill(self) -> "Mutual":
        if self.scaled is None:
            self.scaled = (self.lr or 0.1) * self.size
        if self.lr is None:
            self.lr = self.scaled / self.size
        return self


def test_of_two_that_follow_from_each_other_one_stays() -> None:
    """The experiment that is the base is no other, and the first of them is kept."""
    made = base_of(Mutual(lr=0.2, scaled=2.0))
    assert made.applied({"size": 10}, "e") == Mutual(lr=0.2, scaled=2.0)
    assert made.applied({"size": 20}, "e") == Mutual(lr=0.2, scaled=4.0, size=20)


def test_what_the_class_needs_is_no_doubt() -> None:
    """Where it makes nothing of the rest, what was set stays."""

    class Needed(BaseModel):
        n: int = 1
        half: int | None = None

        @model_validator(mode="after")
        def _fill(self) -> "Needed":
            if self.half is None and self.n % 2:
                raise ValueError("odd")  # noqa: EM101 - as careless code does
            self.half = self.n // 2 if self.half is None else self.half
            return self

    assert base_of(Needed(n=2)).applied({"n": 3}, "e").half == 1


class Exactly(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Mlp(Exactly):
    type: Literal["mlp"] = "mlp"
    depth: int = 1
    size: int = 4


class Cnn(Exactly):
    type: Literal["cnn", "conv"] = "cnn"
    width: int = 8
    size: int = 4


class Net(BaseModel):
    model: Annotated[Mlp | Cnn, Field(discriminator="type")] = Mlp()

    @computed_field
    def area(self) -> int:
        """What follows from the model, and is not read."""
        return self.model.size**2

    model_config = ConfigDict(extra="forbid")


@pytest.mark.parametrize("base", [Net(), Net(model=Mlp(depth=2, size=5))])
def test_another_member_of_a_union_gets_only_its_own(base: Net) -> None:
    """Fields that it lacks are left behind, and what both have stays."""
    made = base_of(base)
    size = base.model.size
    assert made.applied({"model.type": "cnn"}, "e").model == Cnn(size=size)
    chosen = made.applied({"model.type": "conv", "model.width": 2}, "e")
    assert chosen.model == Cnn(type="conv", width=2, size=size)
    assert made.applied({"model.type": "mlp"}, "e").model == base.model
    ((key, reason),) = faults(base, {"model.type": "rnn"})
    assert key == "model.type"
    assert "'mlp', 'cnn', 'conv'" in reason


def test_what_is_computed_is_not_written() -> None:
    """A class that forbids what it does not know takes back what is written."""
    assert "area" not in base_of(Net()).plain


class Prepared(BaseModel):
    steps: int = 0
    opt: Warm = Warm()

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, values: Any) -> Any:
        if "opt" in values:
            values["opt"].setdefault("warmup", 5)
        return values


def test_a_validator_gets_sections_as_a_file_gives_them() -> None:
    """One that wants mappings is given mappings."""
    base = base_of(Prepared.model_validate({"opt": {}}))
    assert base.applied({"steps": 1}, "e") == Prepared.model_construct(
        steps=1, opt=Warm(warmup=5)
    )


class Tagged(BaseModel):
    tags: set[int]


def test_sets_are_written_in_one_order() -> None:
    """The order in which a set gives its elements makes no other base."""
    forms = [base_of(Tagged(tags=set(tags))).plain for tags in ([0, 8], [8, 0])]
    assert forms == [{"tags": [0, 8]}] * 2


class Narrow(BaseModel):
    y: int = 0


class Wide(BaseModel):
    y: int = 0
    z: int = 5


class Chosen(BaseModel):
    name: str = "chosen"
    y: int = 0


def _which(value: Any) -> str:
    name = value.get("name") if isinstance(value, dict) else value.name
    return "chosen" if name == "chosen" else "other"


class Other(BaseModel):
    name: str = "other"
    y: int = 0


class Untagged(BaseModel):
    best: Narrow | Wide = Wide(y=1)
    called: Annotated[
        Annotated[Chosen, Tag("chosen")] | Annotated[Other, Tag("other")],
        Discriminator(_which),
    ] = Chosen()


def test_a_section_stays_the_member_that_it_is() -> None:
    """Where no tag says which member of a union it is, all of its fields do."""
    base = base_of(Untagged())
    config = base.applied({"best.y": 2, "called.y": 3}, "e")
    assert (config.best, config.called) == (Wide(y=2), Chosen(y=3))


def test_a_mapping_may_stand_for_a_config() -> None:
    """What is plain already is plain."""
    assert base_of(Warm()).plain_of({"warmup": 1}) == {"warmup": 1}


class Aware(BaseModel):
    lr: float = Field(0.1, alias="learningRate")
    n: int = 1

    def __init__(self, **data: Any) -> None:  # as many libraries do
        super().__init__(**data)


class Wrapped(BaseModel):
    lr: float = Field(0.1, alias="learningRate")
    sub: Aware = Aware()
    subs: list[Aware] = []

    @field_validator("sub", mode="before")
    @classmethod
    def _make(cls, value: Any) -> Any:
        return Aware(**value) if isinstance(value, dict) else value

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, values: Any) -> Any:
        return {**values, "learningRate": float(values.get("learningRate", 0.1))}


def test_code_of_the_class_gets_the_aliases_that_it_reads() -> None:
    """No parameter and no value of the base is lost on the way, whole or below it."""
    sub = Aware(learningRate=0.3)
    base = Wrapped.model_validate({"sub": sub, "learningRate": 0.2})
    made = base_of(base)
    assert made.applied({"sub.n": 5}, "e").sub == Aware(learningRate=0.3, n=5)
    config = made.applied({"lr": 0.5, "sub.lr": 0.6, "subs": [{"lr": 0.7}]}, "e")
    assert (config.lr, config.sub.lr, config.subs[0].lr) == (0.5, 0.6, 0.7)
    config = made.applied({"sub": {"lr": 0.8, "n": 2}}, "e")
    assert config.sub == Aware(learningRate=0.8, n=2)
    ((key, _),) = faults(base, {"sub.n": "many"})
    assert key == "sub.n"
    config = base_of(sub).applied({"n": 2}, "e")
    assert config == Aware(learningRate=0.3, n=2)


class Ignored(BaseModel):
    sub: Warm = Warm()
    lr: float = 1.0

    @field_validator("sub", mode="before")
    @classmethod
    def _ignore(cls, value: Any) -> Any:
        del value
        return Warm()

    @field_validator("lr")
    @classmethod
    def _clip(cls, value: float) -> float:
        return min(value, 1.0)


@pytest.mark.parametrize(
    ("parameters", "key"),
    [
        ({"sub.warmup": 3}, "sub.warmup"),
        ({"sub": {"warmup": 3}}, "sub.warmup"),
        ({"lr": 2.0}, "lr"),
    ],
)
def test_a_value_that_does_not_arrive_is_refused(
    parameters: dict[str, Any], key: str
) -> None:
    """The class would make of it what the base has anyway."""
    ((found, reason),) = faults(Ignored(), parameters)
    assert found == key
    assert "it would do nothing, for" in reason


class Part(BaseModel):
    total: int | None = None


class Several(BaseModel):
    n: int = 1
    parts: list[Part] = []

    @model_validator(mode="after")
    def _fill(self) -> "Several":
        for part in self.parts:
            if part.total is None:
                part.total = self.n * 10
        return self


def test_the_value_of_the_base_arrives() -> None:
    """In any form that its type reads; a default may ask the class for a value."""
    made = base_of(Ignored())
    assert [made.applied({"lr": v}, "e").lr for v in (1.0, 1, "1.0")] == [1.0] * 3
    assert base_of(Filled()).applied({"warmup": None}, "e") == Filled()
    whole = base_of(Outermost()).applied({"below": {"steps": 100}}, "e")
    assert whole == Outermost()
    filled = base_of(Several(parts=[Part()]))
    assert filled.applied({"parts": [{}], "n": 1}, "e").parts == [Part(total=10)]
    assert filled.applied({"n": 2}, "e").parts == [Part(total=20)]
    exact = base_of(Exact()).applied({"colour": "red", "betas": [0.9, 0.999]}, "a")
    assert exact == Exact()


class Odd(BaseModel):
    lr: float = 0.1
    n: int = 1

    @model_serializer
    def _tell(self) -> str:
        return f"{self.lr}:{self.n}"

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            return dict(zip(("lr", "n"), value.split(":"), strict=True))
        return value


class Deaf(Odd):
    @model_validator(mode="before")
    @classmethod
    def _read_text_alone(cls, value: Any) -> Any:
        return value if isinstance(value, str) else {}


class Texts(BaseModel):
    odd: Odd = Odd()
    deaf: Deaf = Deaf.model_validate("0.1:1")
    k: int = 0


def test_a_section_that_is_not_written_by_its_fields() -> None:
    """It is set in if its class reads them equal; otherwise it is set as a whole."""
    base = Texts(odd=Odd(lr=0.5), deaf=Deaf.model_validate("0.5:1"))
    made = base_of(base)
    assert made.applied({"odd.n": 2, "k": 3}, "e").odd == Odd(lr=0.5, n=2)
    ((key, reason),) = faults(base, {"deaf.n": 2})
    assert key == "deaf"
    assert "though none is changed" in reason
    assert reason.endswith("set deaf as a whole")
    assert made.applied({"deaf": "0.7:2"}, "e").deaf == Deaf.model_validate("0.7:2")


def test_a_class_that_reads_its_config_as_another_later_is_told_of() -> None:
    """A class whose code looks elsewhere is refused, and not trusted."""
    mood = [0]

    class Moody(BaseModel):
        lr: float = 0.1

        @field_validator("lr")
        @classmethod
        def _turn(cls, value: float) -> float:
            return value + mood[0]

    made = base_of(Moody(lr=0.2))
    mood[0] = 1
    for parameters in ({"lr": 0.3}, {}):
        with pytest.raises(
            UnfitError, match=r"makes another config .* leave out secrets"
        ):
            made.applied(parameters, "e")


class Layers(RootModel[Size]):
    pass


class Rates(RootModel[dict[str, float]]):
    pass


class Rooted(BaseModel):
    layers: Layers = Layers(Size(width=5))
    rates: Rates = Rates({"lr": 0.1})


def test_a_root_model_is_set_as_a_whole() -> None:
    """With the value of its root; a key inside is refused, and none is called root."""
    config = base_of(Rooted()).applied(
        {"layers": {"width": 5, "depth": 2}, "rates": {"lr": 0.5, "any": 1}}, "e"
    )
    assert config.layers.root == Size(width=5, depth=2)
    assert config.rates.root == {"lr": 0.5, "any": 1.0}
    for key in ("layers.root.depth", "layers.depth", "layers.root"):
        ((found, reason),) = faults(Rooted(), {key: 2})
        assert found == key
        assert reason == "layers is a Layers, a RootModel: set layers as a whole"
    ((found, reason),) = faults(Rooted(), {"layers": {"wide": 2}})
    assert (found, "root" in reason) == ("layers.wide", False)
    ((found, reason),) = faults(Rooted(), {"layers": {"depth": 2}})
    assert found == "layers.width"
    assert "5 of the base config would become 1" in reason
    with pytest.raises(GridError, match="Layers is a RootModel"):
        base_of(Layers(Size()))


@dataclasses.dataclass
class Widths:
    hidden: int = 64
    wide: int | None = None
    twice: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.twice = 2 * self.hidden
        self.wide = 4 * self.hidden if self.wide is None else self.wide


class Nets(BaseModel):
    model_config = ConfigDict(extra="allow")

    net: Widths = Field(default_factory=Widths)
    epochs: int = 10
    kwargs: dict[str, float] = {}

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        epochs = values.get("epochs", 10)
        kwargs = {"warmup": epochs / 10, **values.get("kwargs", {})}
        return {"patience": epochs // 2, **values, "kwargs": kwargs}


def test_what_follows_in_dataclasses_extras_and_mappings_is_made_again() -> None:
    """None of these says what was set, so what the class makes again is told of."""
    made = base_of(Nets(kwargs={"decay": 0.5}))
    parameters = {"net.hidden": 128, "epochs": 20}
    config = made.applied(parameters, "e")
    assert config == Nets(net=Widths(128), epochs=20, kwargs={"decay": 0.5})
    again = {key: new for key, _, new in made.made_again(config, parameters)}
    assert again == {"kwargs.warmup": "2.0", "patience": "10"}
    other = Nets.model_validate({"net": Widths(wide=3), "patience": 7})
    kept = base_of(other).applied(parameters, "e")
    assert (kept.net.wide, kept.net.twice, kept.model_extra) == (3, 256, {"patience": 7})
    assert made.applied({"net": {"hidden": 128}}, "e").net == Widths(128)
    ((key, _),) = faults(Nets(), {"net.twice": 3})
    assert key == "net.twice"


class Plan(BaseModel):
    total: int = 0
    kind: str = "a"


class Planned(BaseModel):
    epochs: Annotated[int, Field(lt=50)] = 10
    plan: Plan = Field(default_factory=lambda values: Plan(total=values["epochs"]))


def test_what_follows_as_part_of_a_whole_section_is_not_kept_in_silence() -> None:
    """A section that is set in is not made anew by its class: it says what to set as well."""
    made = base_of(Planned())
    assert made.applied({"epochs": 20}, "e").plan == Plan(total=20)
    assert made.applied({"plan.kind": "b"}, "e").plan == Plan(total=10, kind="b")
    ((key, reason),) = faults(Planned(), {"epochs": 20, "plan.kind": "b"})
    assert key == "plan.total"
    assert "where plan is made as a whole, and would be 20 here" in reason
    whole = {"epochs": 20, "plan.kind": "b", "plan.total": 5}
    assert made.applied(whole, "e").plan == Plan(total=5, kind="b")
    ((key, _),) = faults(Planned(), {"epochs": "many", "plan.kind": "b"})
    assert key == "epochs"


class Weighed(BaseModel):
    weights: dict[int, float] = {1: 0.5, 2: 0.5}
    colours: dict[Colour, float] = {Colour.RED: 0.5}


def test_keys_that_are_no_text_are_found_as_they_are_written() -> None:
    """Numbers and enumerations, one alone or all of them."""
    made = base_of(Weighed())
    assert made.applied({"weights.1": 0.6}, "e").weights == {1: 0.6, 2: 0.5}
    assert made.applied({"weights": {"3": 1}}, "e").weights == {3: 1.0}
    assert made.applied({"colours.blue": 1}, "e").colours[Colour.BLUE] == 1.0


def test_a_private_lock_is_no_part_of_an_experiment() -> None:
    """Each gets its own; what cannot be copied is not."""

    class Locked(BaseModel):
        lr: float = 0.1
        _lock: Any = PrivateAttr(default_factory=threading.Lock)

    config = Locked()
    made = base_of(config)
    assert made.applied({"lr": 0.2}, "e")._lock is not config._lock


class Short(BaseModel):
    x_a: int = 1
    p: int = 0


class Long(BaseModel):
    x_a: int = Field(1, alias="XA")
    q: int = 0


class Bounded(BaseModel):
    experiment_name: str = "b"
    epochs: int = 100
    warmup: int = 0
    steps: int = 0
    rate: float = 1.0
    kind: str = "mlp"
    layers: Any = None

    @field_validator("rate")
    @classmethod
    def _at_most_ten(cls, value: float) -> float:
        return min(value, 10.0)

    @model_validator(mode="after")
    def _fit(self) -> "Bounded":
        self.warmup = min(self.warmup, self.epochs)
        if self.kind == "linear":
            self.steps = self.epochs * 100
        return self


def test_what_a_parameter_changes_elsewhere_is_told() -> None:
    """A value of the base that a validator takes back, and a number that it changes."""
    made = base_of(Bounded(warmup=10))
    parameters: dict[str, Any] = {"epochs": 5, "rate": 50.0}
    config = made.applied(parameters, "e")
    assert (config.warmup, config.rate) == (5, 10.0)
    assert list(made.made_again(config, parameters)) == [
        ("warmup", "10", "5"),
        ("rate", "50.0", "10.0"),
    ]


def test_lists_of_other_lengths_are_values_as_any() -> None:
    """Alone, with others, and where a note is asked for."""
    made = base_of(Bounded(layers=[1], warmup=10))
    for parameters in ({"layers": [1, 2, 3]}, {"layers": [], "epochs": 5}):
        config = made.applied(parameters, "e")
        assert config.layers == parameters["layers"]
        noted = [key for key, _, _ in made.made_again(config, parameters)]
        assert noted == ["warmup"] * ("epochs" in parameters)


def test_a_parameter_that_others_override_is_refused() -> None:
    """Though it is not what the base has, either."""
    made = base_of(Bounded())
    parameters = {"kind": "linear", "epochs": 5, "steps": 3}
    with pytest.raises(
        UnfitError, match=r"steps: it would do nothing, for Bounded .* or makes 500"
    ):
        made.applied(parameters, "e")
    assert made.applied({**parameters, "steps": 500}, "e").steps == 500


def test_what_is_no_section_is_not_made_one() -> None:
    """A list, or a text, is set as a whole."""
    for value in ([1, 2], "text"):
        made = base_of(Bounded(layers=value))
        with pytest.raises(
            UnfitError, match=r"layers: it is .*, no section: set it as a"
        ):
            made.applied({"layers.0": 7}, "e")
    assert base_of(Bounded()).applied({"layers.a": 7}, "e").layers == {"a": 7}


@dataclasses.dataclass
class Noted:
    a: int = 1
    note: str = dataclasses.field(default="", compare=False)


class Casual(BaseModel):
    model_config = ConfigDict(extra="allow")
    experiment_name: str = "b"
    noted: Noted = Noted()
    flag: bool | int | None = None
    inner: Private = Private()
    seed: int = 0

    @model_validator(mode="after")
    def _fill(self) -> "Casual":
        if self.flag is None:
            self.flag = 1
        return self


def test_what_is_equal_and_not_the_same_is_kept() -> None:
    """What a comparison does not see, and true where there would be 1."""
    made = base_of(Casual(noted=Noted(1, "keep"), flag=True))
    config = made.applied({"seed": 1}, "e")
    assert (config.noted.note, config.flag) == ("keep", True)
    assert type(config.flag) is bool


def test_a_section_set_as_a_whole_keeps_its_further_keys() -> None:
    """One that a value does not name would be gone."""

    class Base(BaseModel):
        experiment_name: str = "b"
        model: Casual = Casual()

    made = base_of(Base(model=Casual.model_validate({"depth": 3})))
    with pytest.raises(UnfitError, match=r"model\.depth: 3 of the base .* would be gone"):
        made.applied({"model": {"seed": 1}}, "e")


def test_members_of_a_union_are_told_apart_by_their_keys() -> None:
    """In any process: the types of an annotation come in no order of their own."""

    class Both(BaseModel):
        experiment_name: str = "b"
        member: Short | Long = Short()

    made = base_of(Both(member=Short(x_a=3)))
    config = made.applied({"member": {"x_a": 5, "p": 1}}, "e")
    assert config.member == Short(x_a=5, p=1)
    config = made.applied({"member": {"x_a": 5, "q": 1}}, "e")
    assert config.member == Long(XA=5, q=1)


class One(BaseModel):
    kind: Literal["one"] = "one"


class Two(BaseModel):
    kind: Literal["two"] = "two"
    size: int = 1


class Whole(BaseModel):
    x: int
    scale: int = 1


class Half(BaseModel):
    x: float
    scale: int = 2


def test_a_member_of_a_union_that_becomes_another_is_told() -> None:
    """Where no tag says which it is, a value may; then what was not set is another, too."""

    class Both(BaseModel):
        experiment_name: str = "b"
        member: Whole | Half = Half(x=1.5)

    made = base_of(Both())
    config = made.applied({"member.x": 2}, "e")
    assert config.member == Whole(x=2, scale=1)
    assert list(made.made_again(config, {"member.x": 2})) == [
        ("member", "a Half", "a Whole")
    ]
    config = made.applied({"member.x": 2.5}, "e")
    assert list(made.made_again(config, {"member.x": 2.5})) == []

    class Tagged(BaseModel):
        experiment_name: str = "b"
        member: One | Two = One()

    parameters = {"member.kind": "two", "member.size": 3}
    tagged = base_of(Tagged())
    config = tagged.applied(parameters, "e")
    assert (config.member, list(tagged.made_again(config, parameters))) == (
        Two(size=3),
        [],
    )
