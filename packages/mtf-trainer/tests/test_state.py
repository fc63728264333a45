from __future__ import annotations

import io
import random
import sys
from typing import Any

import pytest
import torch

from mtf_trainer.phases import Phase
from mtf_trainer.state import (
    LocalState,
    ResumeState,
    RNGState,
    TrainMicroState,
    UnknownVersionError,
    ValMicroState,
)

np: Any = pytest.importorskip("numpy")


def draw() -> tuple[float, float, float, float]:
    """Draw from each stream; twice from Python's so that a pair of normals is split."""
    normal = random.gauss(0, 1)
    return random.random(), normal, float(np.random.rand()), float(torch.rand(()))  # noqa: S311


def through_a_file(plain: dict[str, Any]) -> Any:
    """Save and load as a checkpoint is, running no code."""
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_streams_go_on_as_they_were() -> None:
    """After a way through a file, each stream gives the numbers it would have given."""
    random.gauss(0, 1)
    np.random.standard_normal()
    state = RNGState.capture()
    expected = draw()

    RNGState.from_plain(through_a_file(state.to_plain())).restore()

    assert draw() == expected


def test_seed_starts_all_streams() -> None:
    """The same seed gives the same numbers, another gives others."""
    RNGState.seed(7)
    first = draw()
    RNGState.seed(8)
    second = draw()
    RNGState.seed(7)

    assert draw() == first
    assert second != first


def test_numpy_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NumPy loaded its stream is neither asked for, seeded nor put back."""
    with_numpy = RNGState.capture()
    before = np.random.get_state()[1].tolist()
    monkeypatch.delitem(sys.modules, "numpy")

    without = RNGState.capture()
    without.restore()
    RNGState.seed(1)
    with_numpy.restore()
    monkeypatch.undo()

    assert without.numpy is None
    assert np.random.get_state()[1].tolist() == before
    assert RNGState.from_plain(without.to_plain()).numpy is None


def resume_state(**changed: Any) -> ResumeState:
    """Return a state in the middle of a validation."""
    values: dict[str, Any] = {
        "phase": Phase.VAL_BATCH_FORWARD,
        "epoch": 2,
        "global_step": 9,
        "train": TrainMicroState(batch_idx=4, epoch_sums={"loss": [2.5, 40]}),
        "val": ValMicroState(batch_idx=1),
        "rng": (),
        "timestamp": ResumeState.now(),
    }
    return ResumeState(**values | changed)


def test_state_reads_back() -> None:
    """Phase, counters, time and what of the epoch is done survive a file."""
    state = resume_state()
    streams = (RNGState.capture(),)

    read = ResumeState.from_plain(through_a_file(state.to_plain()), streams)

    assert read == resume_state(rng=streams, timestamp=state.timestamp)
    assert read.timestamp.endswith("+00:00")
    outside = ResumeState.from_plain(resume_state(val=None).to_plain())
    assert outside.val is None


def test_state_of_a_process_reads_back() -> None:
    """Cursor, sums, gradients and streams of one process survive a file."""
    state = LocalState(
        rng=RNGState.capture(), train_cursor={"samples": 8}, grads={"w": torch.ones(2)}
    )

    read = LocalState.from_plain(through_a_file(state.to_plain()))

    assert read.train_cursor == {"samples": 8}
    assert read.grads is not None
    assert torch.equal(read.grads["w"], torch.ones(2))
    assert torch.equal(read.rng.torch_cpu, state.rng.torch_cpu)


@pytest.mark.parametrize("version", [1, None, "2"])
def test_unknown_version_is_refused(version: object) -> None:
    """A version that is not ours is named, whatever else is in it."""
    with pytest.raises(UnknownVersionError, match=f"version {version!r}"):
        ResumeState.from_plain({"version": version})


def test_malformed_states_are_value_errors() -> None:
    """What lacks a part, or has one of another kind, is refused as such."""
    plain = resume_state().to_plain()
    damages: list[dict[str, Any]] = [
        {"phase": "NO_SUCH_PHASE"},
        {"epoch": None},
        {"train": {"no_such_part": 1}},
        {"val": 3},
    ]
    for damage in damages:
        with pytest.raises(ValueError, match=r"not a|NO_SUCH_PHASE"):
            ResumeState.from_plain(plain | damage)
    del plain["timestamp"]
    with pytest.raises(ValueError, match="not a resume state: KeyError"):
        ResumeState.from_plain(plain)

    local = LocalState(rng=RNGState.capture()).to_plain()
    rng = local["rng"]
    damages = [
        {"rng": {**rng, "python": 3}},
        {"rng": {**rng, "torch_cpu": "no tensor"}},
        {"rng": {"python": [3, [], None]}},
        {"no_such_part": 1},
    ]
    for damage in damages:
        with pytest.raises(ValueError, match=r"not a|not the state"):
            LocalState.from_plain(local | damage)


def test_streams_of_a_seed_are_told_without_using_them() -> None:
    """The streams that a seed would start are returned; this process's stay."""
    before = torch.get_rng_state()
    streams = RNGState.seeded(5)

    assert torch.equal(torch.get_rng_state(), before)
    streams.restore()
    drawn = draw()
    RNGState.seed(5)
    assert draw() == drawn


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_streams_go_on() -> None:
    """Each device's stream is kept too."""
    torch.rand(1, device="cuda")
    state = RNGState.capture()
    expected = torch.rand(3, device="cuda")

    RNGState.from_plain(through_a_file(state.to_plain())).restore()

    assert torch.equal(torch.rand(3, device="cuda"), expected)
