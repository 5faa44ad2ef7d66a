"""Segments: whole batches come back, whatever happens to the bytes behind them."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.log import NewerLog
from router.log.segments import END, SegmentStream, read_segment
from router.records import DecisionRecord, OracleRecord, from_table, to_table

from .conftest import decision

texts = st.none() | st.text(max_size=20)
batches = st.lists(
    st.lists(
        st.builds(
            lambda n, question, seen, cells: replace(
                decision(n), question=question, p_suffices=seen, cells=cells
            ),
            st.integers(0, 99), texts, st.none() | st.tuples(*[st.floats(0, 1, width=32)] * 2),
            st.none() | st.lists(st.tuples(st.integers(0, 35)), max_size=3).map(tuple),
        ),
        min_size=1, max_size=4,
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def made(groups):
    stream = SegmentStream(DecisionRecord)
    return [stream.batch(to_table(group, DecisionRecord)) for group in groups]


def flat(groups):
    return [row for group in groups for row in group]


def rows_of(data):
    read = read_segment(data, DecisionRecord)
    return from_table(read.table, DecisionRecord), read


@settings(deadline=None, max_examples=20)
@given(batches, st.data())
def test_a_segment_may_end_at_any_byte(groups, data):
    parts = made(groups)
    whole = b"".join(parts)
    assert rows_of(whole + END) == (flat(groups), rows_of(whole)[1])
    cut = data.draw(st.integers(len(parts[0]), len(whole)))
    n_whole = max(n for n in range(1, len(parts) + 1) if len(b"".join(parts[:n])) <= cut)
    rows, read = rows_of(whole[:cut])
    assert rows == flat(groups[:n_whole])
    assert not read.damaged
    assert read.torn_bytes == cut - len(b"".join(parts[:n_whole]))
    # A power cut may leave zeros where bytes were to be; what ends in zeros is whole with them.
    rows, read = rows_of(whole[:cut] + b"\0" * 5000)
    assert rows in (flat(groups[:n_whole]), flat(groups[: n_whole + 1]))
    assert not read.damaged
    assert read.torn_bytes


@settings(deadline=None, max_examples=30)
@given(batches, st.data())
def test_no_changed_byte_becomes_another_record(groups, data):
    parts = made(groups)
    whole = bytearray(b"".join(parts))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        rows, _ = rows_of(bytes(whole))
    except ValueError:
        return
    assert all(row in flat(groups) for row in rows)


def test_a_damaged_batch_is_named_and_the_others_are_read():
    parts = made([[decision(1)], [decision(2)], [decision(3)]])
    middle = bytearray(parts[1])
    middle[middle.index(b"aaaaaaaa")] ^= 1
    rows, read = rows_of(parts[0] + bytes(middle) + parts[2])
    assert rows == [decision(1), decision(3)]
    assert read.damaged == ["batch 1 is damaged: another checksum than its writer's"]
    # At the end it is what a power cut leaves of a batch, unless the stream was ended after it.
    rows, read = rows_of(parts[0] + bytes(middle))
    assert (rows, read.damaged, read.torn_bytes) == ([decision(1)], [], len(middle))
    rows, read = rows_of(parts[0] + bytes(middle) + END)
    assert (rows, len(read.damaged), read.torn_bytes) == ([decision(1)], 1, 0)


def test_another_kind_and_a_newer_version_are_refused():
    with pytest.raises(NewerLog, match="records of version 5, and this program reads 1, 2, 3, 4"):
        read_segment(newer(), DecisionRecord)
    with pytest.raises(ValueError, match="lacks the columns"):
        read_segment(made([[decision(1)]])[0], OracleRecord)
    with pytest.raises(ValueError, match="no Arrow stream"):
        read_segment(b"nonsense", DecisionRecord)


def newer() -> bytes:
    table = to_table([decision(1)], DecisionRecord)
    table = table.replace_schema_metadata({**table.schema.metadata, b"schema_version": b"5"})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()
