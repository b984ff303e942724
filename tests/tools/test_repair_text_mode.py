"""A file that was copied as text is read as it was before."""

from __future__ import annotations

import io
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchzip.files.source import FileObjectSource
from torchzip.tools.repairing import text_mode

_PARTS = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"ab", b"\0"]), max_size=40)


@given(parts=_PARTS, block=st.integers(1, 9))
def test_it_is_undone(parts: list[bytes], block: int) -> None:
    """Whatever the bytes were, and wherever blocks end."""
    before = b"".join(parts)
    source = FileObjectSource(io.BytesIO(before.replace(b"\n", b"\r\n")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_mode, "_BLOCK_NBYTES", block)
        assert text_mode.count_text_lines(source) == before.count(b"\n")
        with text_mode.before_text(source, tempfile.gettempdir()) as file:
            assert file.read() == before


@given(parts=_PARTS, block=st.integers(1, 9))
def test_a_lone_line_feed(parts: list[bytes], block: int) -> None:
    """One LF without a CR before it, and the file was not copied as text."""
    data = b"".join(parts)
    alone = data.replace(b"\r\n", b"").count(b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_mode, "_BLOCK_NBYTES", block)
        count = text_mode.count_text_lines(FileObjectSource(io.BytesIO(data)))
    assert count == (0 if alone else data.count(b"\n"))
