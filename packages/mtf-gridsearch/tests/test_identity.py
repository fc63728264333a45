import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf_gridsearch.errors import GridError
from mtf_gridsearch.identity import canonical, identity_of

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(codec="utf-8"), max_size=4), inner, max_size=3
        )
    ),
    max_leaves=6,
)
PARAMETERS = st.dictionaries(st.sampled_from(["a", "b.c", "b.d", "e"]), VALUES)


@given(PARAMETERS, st.randoms())
def test_order_of_keys_does_not_count(parameters: dict[str, Any], rng: Any) -> None:
    """Parameters in any order have one identity."""
    items = list(parameters.items())
    rng.shuffle(items)
    assert identity_of(dict(items)) == identity_of(parameters)


@given(VALUES, VALUES)
def test_same_text_means_same_value(left: Any, right: Any) -> None:
    """Canonical texts are equal exactly when values are, truth and numbers apart."""

    def marked(value: Any) -> Any:
        if isinstance(value, bool):
            return ("bool", value)
        if isinstance(value, list):
            return [marked(item) for item in value]
        if isinstance(value, dict):
            return {key: marked(item) for key, item in value.items()}
        return value

    assert (canonical(left) == canonical(right)) == (marked(left) == marked(right))


def test_numbers_count_by_value() -> None:
    """1 and 1.0 are one parameter, True is another, and no digit of an integer is lost."""
    assert canonical(1) == canonical(1.0) == b"1"
    assert canonical(-0.0) == canonical(0) == b"0"
    assert canonical([True]) == b"[true]"
    assert canonical(2**64 + 1) != canonical(2**64)
    assert canonical(1e300) == canonical(int(1e300))


def test_known_identities() -> None:
    """Identities are those of the first release: folders of old searches stay valid."""
    parameters = {
        "optimizer.lr": 1e-3,
        "model.type": "größe",
        "x": [True, None, {"a": 1}],
    }
    assert canonical(parameters) == (
        b'{"model.type":"gr\\u00f6\\u00dfe","optimizer.lr":0.001,"x":[true,null,{"a":1}]}'
    )
    assert identity_of(parameters) == "1078044a1f21e6ad"
    assert identity_of({}) == "44136fa355b3678a"


def test_hash_seed_does_not_count() -> None:
    """Another process with another hash seed gives the same identity."""
    program = "from mtf_gridsearch.identity import identity_of as i;print(i({'b': 1, 'a': 'x'}))"
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {identity_of({"a": "x", "b": 1})}


def test_what_is_not_plain_has_none() -> None:
    """An object without a plain value is refused."""
    with pytest.raises(GridError, match="object"):
        identity_of({"a": object()})
