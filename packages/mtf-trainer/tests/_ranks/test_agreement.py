from __future__ import annotations

from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric import Fabric

from mtf_trainer._ranks.agreement import StopAgreement


@pytest.fixture(scope="module")
def ranks(
    launch: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Return what two processes saw."""
    spec = spec_from_file_location("ranks", Path(__file__).parents[1] / "run_ranks.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    told: list[dict[str, Any]] = module.run_pair(
        launch, "agreement", tmp_path_factory.mktemp("agreement")
    )
    return told


@pytest.mark.slow
@pytest.mark.parametrize("when", ["at_once", "late"])
def test_all_stop_at_the_same_call(ranks: list[dict[str, Any]], when: str) -> None:
    """A wish of one process ends both at one call, however unlike their speed is."""
    one, other = (rank[when] for rank in ranks)

    assert one["stopped_at"] is not None
    assert one["stopped_at"] == other["stopped_at"]


@pytest.mark.slow
def test_wish_is_known_within_two_spans(ranks: list[dict[str, Any]]) -> None:
    """Where calls take microseconds, at most 64 lie between two reductions."""
    assert ranks[0]["at_once"]["stopped_at"] == 1
    assert 1000 <= ranks[0]["late"]["stopped_at"] <= 1000 + 2 * 64


@pytest.mark.slow
def test_values_are_the_largest_of_all(ranks: list[dict[str, Any]]) -> None:
    """What travels along is the maximum of each number, the same in both processes."""
    for rank in ranks:
        for when in ("at_once", "late"):
            assert rank[when]["values"] == [11, 20]
        assert rank["late"]["step_us"] == ranks[0]["late"]["step_us"] > 0
        assert rank["max_of"] == [1, 0, 7]


@pytest.mark.slow
def test_what_is_on_its_way_counts_at_the_edge(ranks: list[dict[str, Any]]) -> None:
    """A wish that was sent just before the end of an epoch is heard there, by both."""
    for rank in ranks:
        assert not rank["begun"]
        assert rank["in_flight"]
        assert not rank["nobody"]
        assert rank["one"]
        assert not rank["after"]


def test_one_process_agrees_with_itself() -> None:
    """With one process nothing is sent and the answer is immediate."""
    agreement = StopAgreement(Fabric(accelerator="cpu", devices=1), values=(0,))

    assert agreement.reached(wanted=True)
    assert not agreement.reached(wanted=False)
    assert agreement.agree_now(wanted=True)
    assert agreement.max_of(3, -1) == [3, -1]
    agreement.offer(5)
    assert agreement.values == (5,)
    assert agreement.step_us == 0
    agreement.close()


def test_number_of_values_is_fixed() -> None:
    """All processes send as many numbers, or none could be compared."""
    agreement = StopAgreement(Fabric(accelerator="cpu", devices=1), values=(0,))

    with pytest.raises(ValueError, match="takes 1 values, not 2"):
        agreement.offer(1, 2)
