from __future__ import annotations

import json
import os
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf_trainer._saving.frames import Unpacker, frame, receive, send

messages = st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.floats())


@given(st.lists(messages), st.integers(1, 50))
def test_messages_come_out_of_pieces(sent: list[dict[str, Any]], size: int) -> None:
    """However the bytes are cut, the messages come out one by one, as they went in."""
    data = b"".join(map(frame, sent))
    unpacker = Unpacker()
    found = []
    for at in range(0, len(data), size):
        unpacker.feed(data[at : at + size])
        while (message := unpacker.next()) is not None:
            found.append(message)
    assert repr(found) == repr(sent)


def test_a_message_goes_through_a_pipe() -> None:
    """What is sent is received, and the end of the pipe is the end, even amid one."""
    there, here = os.pipe()
    with os.fdopen(there, "rb") as reader, os.fdopen(here, "wb") as writer:
        for message in ({}, {"path": "/a\udce4", "loss": float("inf")}):
            send(writer.fileno(), frame(message))
            assert receive(reader.fileno()) == message
        send(writer.fileno(), frame({"a": 1})[:-1])
        writer.close()
        assert receive(reader.fileno()) is None


@pytest.mark.parametrize(
    "body", [b"[]", b"1", b"\xff", b"{", json.dumps([{}]).encode(), b""]
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    """Only an object is a message."""
    unpacker = Unpacker()
    unpacker.feed(struct.pack("<I", len(body)) + body)
    with pytest.raises(ValueError, match=r"object|JSON|Expecting|utf-8"):
        unpacker.next()


def test_a_length_beyond_reason_is_refused() -> None:
    """A broken length does not make the reader wait for gigabytes."""
    unpacker = Unpacker()
    unpacker.feed(b"\xff\xff\xff\xff")
    with pytest.raises(ValueError, match="4,294,967,295 bytes"):
        unpacker.next()


def test_only_plain_data_can_be_sent() -> None:
    """Anything else is the caller's error."""
    with pytest.raises(TypeError):
        frame({"a": object()})
