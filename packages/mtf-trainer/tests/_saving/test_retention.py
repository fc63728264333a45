from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf_trainer._saving.retention import Entry, to_delete

ages = st.tuples(st.integers(0, 12), st.integers(0, 40))
metrics = st.one_of(
    st.none(), st.floats(allow_nan=True, width=16), st.sampled_from([0.0, 1.0])
)


@st.composite
def folders(draw: st.DrawFn) -> tuple[list[Entry], Entry]:
    """Draw what lies in a folder, in any order, and which of it was just proven."""
    entries = [
        Entry(
            name=f"{epoch}-{step}",
            epoch=epoch,
            global_step=step,
            metric=draw(metrics),
            is_epoch_end=draw(st.booleans()),
            is_good=draw(st.booleans()),
        )
        for epoch, step in draw(st.lists(ages, unique=True, min_size=1, max_size=12))
    ]
    current = draw(st.sampled_from(entries))
    if not current.is_good:
        entries.remove(current)
        current = Entry(
            name=current.name, epoch=current.epoch, global_step=current.global_step
        )
        entries.append(current)
    return entries, current


settings = st.fixed_dictionaries(
    {
        "keep_last_n": st.integers(1, 5),
        "keep_every_n_epochs": st.one_of(st.none(), st.integers(1, 4)),
        "keep_best_k": st.integers(0, 4),
        "mode": st.sampled_from(["min", "max"]),
    }
)


@given(folder=folders(), wishes=settings)
def test_what_must_stay_stays(folder: tuple[list[Entry], Entry], wishes: dict) -> None:  # type: ignore[type-arg]
    """The one just proven, the newer, and all that a setting asks for are never deleted."""
    entries, current = folder
    gone = set(to_delete(entries, current, **wishes))

    good = [e for e in entries if e.is_good and e.age <= current.age]
    newest = sorted(good, key=lambda e: e.age, reverse=True)[: wishes["keep_last_n"]]
    assert not gone & {e.name for e in newest}
    assert current.name not in gone
    assert not gone & {e.name for e in entries if e.age > current.age}
    if every := wishes["keep_every_n_epochs"]:
        ends = {e.name for e in good if e.is_epoch_end and e.epoch % every == 0}
        assert not gone & ends
    sign = 1 if wishes["mode"] == "min" else -1
    scored = [
        e
        for e in good
        if e.is_epoch_end and e.metric is not None and not math.isnan(e.metric)
    ]
    kept = [e for e in scored if e.name not in gone]
    dropped = [e for e in scored if e.name in gone]
    best = wishes["keep_best_k"]
    for each in dropped:
        better = [e for e in kept if sign * e.metric <= sign * each.metric]  # type: ignore[operator]
        assert len(better) >= best


@given(folder=folders(), wishes=settings)
def test_no_more_stay_than_are_wished_for(
    folder: tuple[list[Entry], Entry],
    wishes: dict,  # type: ignore[type-arg]
) -> None:
    """The good ones up to now are never more than the settings add up to."""
    entries, current = folder
    gone = set(to_delete(entries, current, **wishes))

    left = [
        e for e in entries if e.is_good and e.age <= current.age and e.name not in gone
    ]
    every = wishes["keep_every_n_epochs"]
    ends = [e for e in left if every and e.is_epoch_end and e.epoch % every == 0]
    assert len(left) <= wishes["keep_last_n"] + wishes["keep_best_k"] + len(ends)


@given(folder=folders(), wishes=settings)
def test_damaged_ones_take_no_place(
    folder: tuple[list[Entry], Entry],
    wishes: dict,  # type: ignore[type-arg]
) -> None:
    """What happens to the good ones is the same whether damaged ones lie there or not."""
    entries, current = folder
    good = [e for e in entries if e.is_good]
    damaged = {e.name for e in entries if not e.is_good}

    gone = to_delete(entries, current, **wishes)

    assert [n for n in gone if n not in damaged] == to_delete(good, current, **wishes)
    enough = [e for e in good if e.age <= current.age]
    if len(enough) < wishes["keep_last_n"]:
        assert not damaged & set(gone)


@given(folder=folders(), wishes=settings)
def test_doing_it_again_deletes_nothing(
    folder: tuple[list[Entry], Entry],
    wishes: dict,  # type: ignore[type-arg]
) -> None:
    """What remains is what the same settings keep."""
    entries, current = folder
    gone = set(to_delete(entries, current, **wishes))

    left = [e for e in entries if e.name not in gone]
    assert to_delete(left, current, **wishes) == []


def test_old_damaged_ones_go_in_the_end() -> None:
    """One that is damaged goes once as many good ones as shall stay are newer."""
    damaged = Entry(name="d", epoch=1, global_step=1, is_good=False)
    good = [Entry(name=f"g{n}", epoch=n, global_step=n) for n in (2, 3)]

    assert to_delete([damaged, *good], good[0], keep_last_n=2) == []
    assert to_delete([damaged, *good], good[1], keep_last_n=2) == ["d"]
    assert to_delete([damaged, *good], good[0], keep_last_n=1) == ["d"]


@pytest.mark.parametrize(("mode", "best"), [("min", "e3"), ("max", "e1")])
def test_of_two_alike_the_newer_is_the_best(mode: str, best: str) -> None:
    """Ties are broken by age, infinity is a number, and NaN is none."""
    values = [5.0, 1.0, 1.0, math.nan, None, math.inf if mode == "min" else -math.inf]
    entries = [
        Entry(name=f"e{n}", epoch=n, global_step=n, metric=m, is_epoch_end=True)
        for n, m in enumerate(values, 1)
    ]
    if mode == "min":
        gone = to_delete(entries, entries[-1], keep_last_n=1, keep_best_k=1, mode="min")
        assert gone == ["e1", "e2", "e4", "e5"]
    else:
        gone = to_delete(entries, entries[-1], keep_last_n=1, keep_best_k=1, mode="max")
        assert gone == ["e2", "e3", "e4", "e5"]
    assert best not in gone


def test_the_best_is_one_that_was_validated() -> None:
    """A save inside an epoch, which has the metric of the one before, is not the best."""
    best = Entry(name="best", epoch=2, global_step=32, metric=1.0, is_epoch_end=True)
    inside = [Entry(name=f"i{n}", epoch=2, global_step=n, metric=1.0) for n in (35, 40)]
    last = Entry(name="last", epoch=3, global_step=48, metric=3.0, is_epoch_end=True)

    gone = to_delete([best, *inside, last], last, keep_last_n=1, keep_best_k=1)

    assert gone == ["i35", "i40"]
