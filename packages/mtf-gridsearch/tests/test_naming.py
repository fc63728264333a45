import re
import subprocess
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtf_gridsearch.errors import NamingError
from mtf_gridsearch.identity import identity_of
from mtf_gridsearch.naming import (
    MAX_LENGTH,
    ExperimentNaming,
    NamingStrategy,
    ParsedName,
    abbreviations,
    check_name,
)

READABLE = [NamingStrategy.PARAMETER_BASED, NamingStrategy.SHORT]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
generate = ExperimentNaming.generate_name
parse = ExperimentNaming.parse_experiment_name

TEXTS = st.text(
    st.sampled_from("_x2F.-a1é/ lock\n'\"[{~") | st.characters(codec="utf-8"), max_size=8
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | TEXTS
    | st.sampled_from(
        ["true", "null", "1e-3", "", ".lock", "a.lock", "gpt-2", "__", ".."]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=3,
)
KEYS = st.from_regex(
    r"[a-z_][a-zA-Z0-9_-]{0,5}(\.[a-z0-9_][a-z_-]{0,4}){0,2}", fullmatch=True
)
PARAMETERS = st.dictionaries(KEYS, VALUES, min_size=1, max_size=3)
BASES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True).filter(
    lambda text: ".." not in text and not text.endswith((".", ".lock"))
)


def marked(value: Any) -> Any:
    """Return *value* such that equality tells types apart."""
    if isinstance(value, list):
        return [marked(item) for item in value]
    if isinstance(value, dict):
        return {key: marked(item) for key, item in value.items()}
    return (type(value), repr(value))


def is_ref(name: str) -> bool:
    """Tell whether git takes *name* for the component of a ref."""
    done = subprocess.run(["git", "check-ref-format", f"refs/heads/{name}"], check=False)
    return done.returncode == 0


@given(BASES, PARAMETERS, st.sampled_from(READABLE), st.randoms())
@example("a__b-1", {"k": "__"}, NamingStrategy.SHORT, None)
@example("x_x2Fy", {"a_-b": "_x2F"}, NamingStrategy.PARAMETER_BASED, None)
@example("a", {"k": "a.lock", "b": "x."}, NamingStrategy.PARAMETER_BASED, None)
def test_readable_names_parse_back_exactly(
    base: str, parameters: dict[str, Any], strategy: NamingStrategy, rng: Any
) -> None:
    """A readable name gives base and parameters, types included, in any order of keys."""
    name = generate(base, parameters, strategy)
    assert NAME.fullmatch(name)
    assert ".." not in name
    assert not name.endswith((".", ".lock"))
    items = list(parameters.items())
    if rng is not None:
        rng.shuffle(items)
    assert generate(base, dict(items), strategy) == name
    keys = list(parameters) if strategy is NamingStrategy.SHORT else []
    if name.endswith(f"__{identity_of(parameters)}"):  # it was too long
        with pytest.raises(NamingError, match="only the index"):
            parse(name, keys=keys)
    else:
        try:
            parsed = parse(name, keys=keys)
        except NamingError as error:  # of keys such as a and b.a
            assert " may be " in str(error)  # noqa: PT017 -- most names have no doubt
            return
        assert parsed.base == base
        assert marked(dict(parsed.parameters)) == marked(parameters)


@given(BASES, PARAMETERS, PARAMETERS)
def test_readable_names_tell_parameters_apart(
    base: str, left: dict[str, Any], right: dict[str, Any]
) -> None:
    """Different parameters have different names."""
    names = [generate(base, p, NamingStrategy.PARAMETER_BASED) for p in (left, right)]
    assert (names[0] == names[1]) == (marked(left) == marked(right))


@pytest.mark.parametrize("strategy", NamingStrategy)
def test_git_and_the_file_system_take_every_name(
    strategy: NamingStrategy, tmp_path: Any
) -> None:
    """Names of hostile bases and values are refs for git and names of folders."""
    values = [
        "../../etc",
        "a b;rm -rf",
        "x.lock",
        "x.",
        "@{-1}",
        "é" * 40,
        "-",
        "~^:?*[\\",
    ]
    for base in ("run", "a" * 128, "x_y.z-", "1"):
        for value in values:
            name = generate(base, {"model.type": value}, strategy, number=3)
            assert NAME.fullmatch(name)
            assert is_ref(name)
            (tmp_path / name).mkdir()
            (tmp_path / name).rmdir()


def test_how_names_look() -> None:
    """Ordinary parameters stay readable."""
    parameters = {
        "optimizer.lr": 1e-05,
        "model.hidden_size": 512,
        "model.type": "resnet-50",
        "amp": True,
        "clip": -0.5,
        "big": 1e16,
        "max": float("-inf"),
    }
    assert generate("digits", parameters, NamingStrategy.PARAMETER_BASED) == (
        "digits__amp-true__big-1e16__clip--0.5__max--.inf__"
        "model.hidden_size-512__model.type-resnet-50__optimizer.lr-1e-05"
    )
    assert generate("digits", parameters, NamingStrategy.SHORT) == (
        "digits__amp-true__big-1e16__clip--0.5__max--.inf__"
        "hs-512__type-resnet-50__lr-1e-05"
    )
    assert generate("digits", {"lr": 1}) == f"digits__{identity_of({'lr': 1})}"
    stamped = generate("d", {"lr": 1}, NamingStrategy.TIMESTAMP, stamp="20260101T000000")
    assert stamped == f"d_20260101T000000__{identity_of({'lr': 1})}"
    now = generate("d", {"lr": 1}, NamingStrategy.TIMESTAMP)
    assert re.fullmatch(r"d_\d{8}T\d{6}__[0-9a-f]{16}", now)
    assert generate("d", {"lr": 1}, NamingStrategy.SEQUENTIAL, number=7) == "d_0007"


def test_text_that_looks_like_a_number_is_quoted() -> None:
    """Text and numbers that look alike have different names, both of which parse back."""
    values: list[Any] = ["1", 1, 1.0, "1e999", True, "true", [1], "[1]", None, "null", ""]
    names = [generate("d", {"a": v}, NamingStrategy.PARAMETER_BASED) for v in values]
    assert len(set(names)) == len(values)
    found = [parse(name).parameters["a"] for name in names]
    assert marked(found) == marked(values)


def test_too_long_names_keep_their_beginning() -> None:
    """A name over the limit is a readable beginning and the identity."""
    parameters = {f"parameter_{i}": i for i in range(20)}
    name = generate("digits", parameters, NamingStrategy.PARAMETER_BASED)
    assert len(name) <= MAX_LENGTH
    assert name.startswith("digits__parameter_0-0__parameter_1-1__parameter_10-10")
    assert name.endswith(f"__{identity_of(parameters)}")
    assert generate("a" * 128, {"lr": 1}).startswith("a" * 110 + "__")


@pytest.mark.parametrize(
    "name",
    [
        "digits",
        "digits_0007",
        "digits__0123456789abcdef",
        "my-exp__0123456789abcdef",
        "digits_20260101T000000__0123456789abcdef",
    ],
)
def test_names_that_need_the_index(name: str) -> None:
    """What does not hold its parameters says where they are; the index has them."""
    with pytest.raises(NamingError, match="only the index"):
        parse(name)
    known = ParsedName("digits", {"lr": 1})
    assert parse(name, index={name: known}) is known


@pytest.mark.parametrize(
    "name",
    [
        "digits__b-1__a-1",
        "digits__a-1__a-1",
        "digits__a-01",
        "digits__a-1e-3",
        "digits__a-_x31",
        "digits__a-_xFF",
        "digits__a-_x22",
        "digits__a-_x5B1",
        "digits__-1",
        "digits__a-",
        "digits__a-1.lock",
        "../a__b-1",
        "",
    ],
)
def test_names_that_were_changed(name: str) -> None:
    """A name that no parameters have is refused: each experiment has one spelling."""
    with pytest.raises(NamingError):
        parse(name)


def test_bad_arguments() -> None:
    """Bases, keys and values that cannot be named are refused."""
    for word in ("nonsense", "", None, ["short"]):
        with pytest.raises(NamingError, match="is no strategy: write hash_based, param"):
            generate("d", {"lr": 1}, word)  # type: ignore[arg-type]
    for stamp in ("a/../b c", "", "a__b", "x" * 33):
        with pytest.raises(NamingError, match="is no stamp"):
            generate("d", {"lr": 1}, NamingStrategy.TIMESTAMP, stamp=stamp)
    with pytest.raises(NamingError, match="needs its number"):
        generate("d", {"lr": 1}, NamingStrategy.SEQUENTIAL)
    with pytest.raises(NamingError, match="no key"):
        generate("d", {"a b": 1})
    with pytest.raises(NamingError, match="NaN"):
        generate("d", {"a": float("nan")})
    with pytest.raises(NamingError, match="is no name"):
        generate("../d", {"a": 1})


@pytest.mark.parametrize("strategy", NamingStrategy)
def test_a_strategy_may_be_given_as_its_word(strategy: NamingStrategy) -> None:
    """The text means what the member does."""
    names = [
        generate("d", {"optimizer.lr": 1}, word, number=3, stamp="20260101T000000")
        for word in (strategy, str(strategy))
    ]
    assert names[0] == names[1]


def test_no_parameters() -> None:
    """Even nothing has a name that is not its base."""
    name = generate("d", {}, NamingStrategy.PARAMETER_BASED)
    assert name == f"d__{identity_of({})}"


@pytest.mark.parametrize("name", ["a", "A.b_c-d", "1", "a" * 128])
def test_names(name: str) -> None:
    """Letters, digits and three signs are a name, and git agrees."""
    assert check_name(name) == name
    assert is_ref(name)


@pytest.mark.parametrize(
    "name",
    ["", ".a", "-a", "_a", "a/b", "a b", "é", "a" * 129, "a\n", "a..b", "a.", "a.lock"],
)
def test_no_names(name: str) -> None:
    """All else is none."""
    with pytest.raises(NamingError):
        check_name(name)
    with pytest.raises(NamingError, match="is no name"):
        check_name(3)


def test_how_keys_are_abbreviated() -> None:
    """A word stays or is cut, words become initials, sections come in where they must."""
    keys = [
        "optimizer.lr",
        "scheduler.lr",
        "model.hidden_size",
        "model.dropout",
        "lr",
        "model.heads_second",
        "__",
    ]
    assert abbreviations(keys) == {
        "__": "__",
        "lr": ".lr",
        "model.dropout": "drop",
        "model.heads_second": "m.heads_second",
        "model.hidden_size": "m.hidden_size",
        "optimizer.lr": "o.lr",
        "scheduler.lr": "s.lr",
    }


@given(st.sets(KEYS, max_size=8))
@example({"seed", "data.seed"})
@example({"o.lr", "optimizer.lr", "lr"})
def test_short_names_are_read_with_their_own_keys(keys: set[str]) -> None:
    """Whatever the keys are, also if one is what another would be cut to."""
    for key in keys:
        name = generate("d", {key: 1}, NamingStrategy.SHORT, keys=keys)
        if len(key) < 100:
            assert parse(name, keys=keys).parameters == {key: 1}


@given(st.sets(KEYS, max_size=8))
def test_abbreviations_collide_with_nothing(keys: set[str]) -> None:
    """No two keys have the same short form, and none has that of another's full one."""
    short = abbreviations(keys)
    assert set(short) == keys
    assert len(set(short.values())) == len(keys)
    assert all(text not in keys or text == key for key, text in short.items())


def test_a_counted_name_holds_no_parameters_whatever_its_base() -> None:
    """A base that looks like parameters is not read as some."""
    name = ExperimentNaming.generate_name(
        "a__b-1", {"x": 1}, NamingStrategy.SEQUENTIAL, number=1
    )
    assert name == "a_x5F_b-1_0001"
    with pytest.raises(NamingError, match="does not hold its parameters"):
        ExperimentNaming.parse_experiment_name(name)


def test_a_short_name_of_fewer_keys_is_never_read_wrongly() -> None:
    """With the keys of an extended search, a doubtful name is an error, and no other key."""
    name = generate("d", {"optimizer.lr": 0.1}, NamingStrategy.SHORT)
    assert name == "d__lr-0.1"
    assert parse(name, keys=["optimizer.lr", "seed"]).parameters == {"optimizer.lr": 0.1}
    for more, other in (("scheduler.lr", "scheduler.lr"), ("lr", "lr")):
        with pytest.raises(NamingError, match=rf"'lr' may be .*\b{other}\b"):
            parse(name, keys=["optimizer.lr", more])
    with pytest.raises(NamingError, match="'lr' is no key of the search"):
        parse(name, keys=["seed"])
