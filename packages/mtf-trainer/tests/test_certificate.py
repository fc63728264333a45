from __future__ import annotations

import copy
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mtf_trainer.certificate import PARTS, Certificate, MetricsDigest, certify, check
from mtf_trainer.errors import MetricsFileError


def content() -> dict[str, Any]:
    """Return all that a checkpoint holds, small."""
    local = {
        "rng": {"python": [3, [1, 2], None], "torch_cpu": torch.zeros(3)},
        "train_cursor": {"index": 4},
        "train_means": {"loss": torch.zeros(2)},
        "grads": {"w": torch.zeros(2)},
        "ddp": {"b": torch.zeros(2)},
        "comm": {"error": torch.zeros(2)},
    }
    return {
        "resume": {"phase": "EPOCH_END", "epoch": 1, "timestamp": "now"},
        "model": {"w": torch.ones(2)},
        "ema": {"w": torch.ones(2)},
        "optimizers": [{"state": {0: {"step": 1.0}}, "lr": 0.1}],
        "schedulers": [{"last_epoch": 1}],
        "precision": {"scale": 2.0},
        "callbacks": {"stop": {"waited": 1}},
        "locals": [local, copy.deepcopy(local)],
        "metrics": {"loss": 0.5},
        "metrics_bytes": 10,
        "certificate": {"digest": "of another"},
    }


def changed(place: str, value: object) -> dict[str, Any]:
    """Return the content with another value at *place*."""
    whole = content()
    *way, last = place.split(".")
    inner: Any = whole
    for key in way:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    inner[last] = value
    return whole


@pytest.mark.parametrize(
    ("place", "part"),
    [
        ("model.w", "weights"),
        ("model.new", "weights"),
        ("ema.w", "weights"),
        ("locals.1.ddp", "weights"),
        ("optimizers.0.lr", "optimizer"),
        ("schedulers.0.last_epoch", "optimizer"),
        ("precision.scale", "optimizer"),
        ("locals.0.grads", "optimizer"),
        ("locals.1.comm", "optimizer"),
        ("locals.1.rng", "rng"),
        ("resume.phase", "data"),
        ("locals.0.train_cursor", "data"),
        ("locals.1.train_means", "data"),
        ("locals.1.unknown", "data"),
        ("callbacks.stop.waited", "data"),
        ("metrics.loss", "data"),
        ("metrics_bytes", "data"),
        ("unknown", "data"),
    ],
)
def test_each_entry_feeds_one_part(place: str, part: str) -> None:
    """A change anywhere changes the part that the table names, and no other."""
    before = certify(content(), metrics_digest="a" * 64, parent=None)

    assert check(content(), before) == ()
    assert check(changed(place, torch.full((2,), 7.0)), before) == (part,)


@pytest.mark.parametrize("place", ["resume.timestamp", "certificate"])
def test_time_and_the_certificate_itself_do_not_count(place: str) -> None:
    """The same state has the same certificate whenever it is written."""
    before = certify(content(), metrics_digest=None, parent=None)

    assert certify(changed(place, "another"), metrics_digest=None, parent=None) == before


def test_one_bit_anywhere_changes_the_digest() -> None:
    """Turning any single bit of the weights gives another digest of the whole."""
    whole = content()
    digests = {certify(whole, metrics_digest=None, parent=None).digest}
    bits = whole["model"]["w"].view(torch.uint8)
    for index in range(len(bits)):
        for bit in range(8):
            bits[index] ^= 1 << bit
            digests.add(certify(whole, metrics_digest=None, parent=None).digest)
            bits[index] ^= 1 << bit

    assert len(digests) == 1 + 8 * len(bits)


def test_parent_and_metrics_change_the_digest() -> None:
    """Two checkpoints of one state with other parents, or metrics, have other digests."""
    digests = {
        certify(content(), metrics_digest=metrics, parent=parent).digest
        for metrics in (None, "a" * 64, "b" * 64)
        for parent in (None, "a" * 64, "b" * 64)
    }

    assert len(digests) == 9


def test_certificate_is_the_same_everywhere() -> None:
    """A digest that was once computed stays: others may have written it down."""
    one = certify({"model": {"w": torch.ones(2)}}, metrics_digest=None, parent=None)

    assert one.weights == hashlib.sha256(WEIGHTS).hexdigest()
    assert one.digest == (
        "ea1c5a0d915c8b4331af80a631206f36cbdb6e5ba171daa69af458d5d77fdee8"
    )


def framed(tag: bytes, length: int, rest: bytes = b"") -> bytes:
    """Return a piece of the encoding, by its description."""
    return tag + length.to_bytes(8, "little") + rest


WEIGHTS = b"".join(
    [
        framed(b"L", 3),
        framed(b"I", 1, b"\1"),
        framed(b"S", 7, b"weights"),
        framed(b"M", 1),
        framed(b"S", 5, b"model"),
        framed(b"M", 1),
        framed(b"S", 1, b"w"),
        b"X" + framed(b"S", 7, b"float32"),
        (1).to_bytes(8, "little") + (2).to_bytes(8, "little"),
        b"\0\0\x80\x3f" * 2,
    ]
)


def test_contradiction_in_a_certificate_is_found() -> None:
    """A certificate with one part replaced does not follow from its parts any more."""
    good = certify(content(), metrics_digest=None, parent=None)
    for part in PARTS:
        forged = Certificate.from_plain(good.to_plain() | {part: "0" * 64})
        assert good.is_consistent
        assert not forged.is_consistent
        assert "digest" in check(content(), forged)


def test_plain_form_is_read_back() -> None:
    """`from_plain` gives what `to_plain` was given, with other keys beside it."""
    good = certify(content(), metrics_digest="a" * 64, parent=None)

    assert Certificate.from_plain(good.to_plain() | {"name": "x"}) == good


@pytest.mark.parametrize(
    "change",
    [
        {"weights": None},
        {"weights": "A" * 64},
        {"weights": "a" * 63},
        {"weights": "a" * 64 + "\n"},
        {"digest": 5},
        {"parent": ""},
        {"metrics": []},
        {"version": 2},
        {"version": True},
        {"version": "1" * 1000},
    ],
)
def test_what_is_no_certificate_is_refused(change: dict[str, Any]) -> None:
    """Every part must be a digest; only parent and metrics may be None."""
    plain = certify(content(), metrics_digest=None, parent=None).to_plain()

    with pytest.raises(ValueError, match="certificate"):
        Certificate.from_plain(plain | change)


@pytest.mark.parametrize("key", ["parent", "metrics", "weights", "version"])
def test_nothing_may_be_missing(key: str) -> None:
    """A certificate without one of its keys is refused, though its value may be None."""
    plain = certify(content(), metrics_digest=None, parent=None).to_plain()
    del plain[key]

    with pytest.raises(ValueError, match="certificate"):
        Certificate.from_plain(plain)
    with pytest.raises(ValueError, match="no mapping"):
        Certificate.from_plain([plain])


def test_malformed_content_is_still_certified() -> None:
    """What has the key of a part and not its form feeds the digest of data whole."""
    before = certify(content(), metrics_digest=None, parent=None)

    assert check(changed("locals", ["x"]), before) == tuple(PARTS[:4])
    assert check(changed("resume", 3), before) == ("data",)


class TestMetricsDigest:
    def test_is_the_sha256_of_the_beginning(self, tmp_path: Path) -> None:
        """While the file grows, each answer is that of a fresh read."""
        path = tmp_path / "metrics.jsonl"
        digest = MetricsDigest(path)
        data = os.urandom(20_000)
        for size in (0, 10, 10, 5000, 20_000):
            path.write_bytes(data[: size + 100])
            assert digest.up_to(size) == hashlib.sha256(data[:size]).hexdigest()

    def test_shorter_beginning_is_read_again(self, tmp_path: Path) -> None:
        """Asked for less than before, as after a roll back, it starts anew."""
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(b"abcdef")
        digest = MetricsDigest(path)
        digest.up_to(6)

        assert digest.up_to(3) == hashlib.sha256(b"abc").hexdigest()

    @pytest.mark.parametrize("replaced", [True, False])
    def test_other_file_is_read_again(self, tmp_path: Path, *, replaced: bool) -> None:
        """Whether replaced, or cut and written again, what is there now counts."""
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(b"abcdef")
        digest = MetricsDigest(path)
        digest.up_to(4)
        if replaced:
            other = tmp_path / "other"
            other.write_bytes(b"abcdXf")
            other.replace(path)
        else:
            path.write_bytes(b"XYZWVU")
        expected = hashlib.sha256(path.read_bytes()).hexdigest()

        assert digest.up_to(6) == expected

    def test_missing_file_counts_as_nothing(self, tmp_path: Path) -> None:
        """Without a file there is no digest; if there should be bytes, an error."""
        digest = MetricsDigest(tmp_path / "metrics.jsonl")

        assert digest.up_to(0) is None
        with pytest.raises(MetricsFileError, match="is missing"):
            digest.up_to(1)

    def test_short_file_is_an_error(self, tmp_path: Path) -> None:
        """A file with fewer bytes than it should have is named, and can grow later."""
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(b"abc")
        digest = MetricsDigest(path)

        with pytest.raises(MetricsFileError, match=r"has 3 bytes, and should have .* 4"):
            digest.up_to(4)
        path.write_bytes(b"abcd")
        assert digest.up_to(4) == hashlib.sha256(b"abcd").hexdigest()

    def test_what_cannot_be_read_is_an_error(self, tmp_path: Path) -> None:
        """A folder or a pipe in the file's place is an error; nothing waits for it."""
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        for name in ("folder", "pipe"):
            with pytest.raises(MetricsFileError, match="cannot be read"):
                MetricsDigest(tmp_path / name).up_to(1)
        looped = tmp_path / "loop"
        looped.symlink_to(looped)
        with pytest.raises(MetricsFileError, match="cannot be read"):
            MetricsDigest(looped).up_to(1)
