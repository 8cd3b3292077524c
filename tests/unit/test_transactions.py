"""split() takes a group apart into transactions: no row is lost, and old rows are kept apart from new ones."""

import asyncio
from contextlib import closing

from hypothesis import given
from hypothesis import strategies as st

from app.ingest.batch import Batch, Source
from app.ingest.check import MAX_AHEAD_US
from app.ingest.store.transactions import Pending, Transaction, split
from app.telemetry.instant import DAY_US, EPOCH_US, HOUR_US, LATE_US
from app.telemetry.reading import Stream

# 2026-03-01 00:04:56.789 UTC, in microseconds since 2000: the last 10 minutes lie in two days.
NOW = 825_638_696_789_000
BORDER = NOW - LATE_US

instants = st.one_of(
    st.sampled_from([BORDER - 1, BORDER, BORDER + 1, NOW, NOW + MAX_AHEAD_US]),
    st.integers(NOW - 7 * DAY_US, NOW + MAX_AHEAD_US),
    st.integers(NOW - HOUR_US, NOW + MAX_AHEAD_US),
    st.builds(
        lambda hours, offset: NOW // HOUR_US * HOUR_US - hours * HOUR_US + offset,
        st.integers(0, 25),
        st.integers(-1, 1),
    ),
)
groups = st.lists(
    st.fixed_dictionaries({stream: st.lists(instants, max_size=8) for stream in Stream}), min_size=1, max_size=5
)


def pendings(group: list[dict[Stream, list[int]]]) -> list[Pending]:
    """Returns batches in flight with these instants; every row says where it stood."""

    async def make() -> list[Pending]:
        return [Pending(Batch(0, [], [], []), Source.HTTP) for _ in group]

    # Each batch holds a future, which belongs to a loop.
    with closing(asyncio.new_event_loop()) as loop:
        made = loop.run_until_complete(make())
    for number, (pending, instants_of) in enumerate(zip(made, group, strict=True)):
        pending.rows = {
            stream: [(ts, 1, number, position) for position, ts in enumerate(instants_of[stream])] for stream in Stream
        }
    return made


def transactions_of(group: list[Pending]) -> list[Transaction]:
    return split(group, NOW + EPOCH_US)


@given(groups)
def test_every_row_is_in_one_transaction(group: list[dict[Stream, list[int]]]) -> None:
    made = pendings(group)
    found = [
        (pending, stream, row)
        for transaction in transactions_of(made)
        for pending, rows in transaction.slices
        for stream in Stream
        for row in rows[stream]
    ]
    expected = [(pending, stream, row) for pending in made for stream in Stream for row in pending.rows[stream]]
    assert len(found) == len(expected)
    assert {(id(pending), *rest) for pending, *rest in found} == {(id(pending), *rest) for pending, *rest in expected}


@given(groups)
def test_order_is_kept_within_a_transaction(group: list[dict[Stream, list[int]]]) -> None:
    made = pendings(group)
    for transaction in transactions_of(made):
        order = [made.index(one.pending) for one in transaction.slices]
        assert order == sorted(set(order))
        for stream in Stream:
            places = [row[2:] for row in transaction.rows().get(stream, [])]
            assert places == sorted(places)


@given(groups)
def test_one_transaction_for_new_rows_and_one_for_each_hour_of_late_ones(group: list[dict[Stream, list[int]]]) -> None:
    transactions = transactions_of(pendings(group))
    instants_of = {ts for one in group for stream in Stream for ts in one[stream]}
    expected = [(True, hour) for hour in sorted({ts // HOUR_US for ts in instants_of if ts < BORDER})]
    if any(ts >= BORDER for ts in instants_of):
        expected.insert(0, (False, BORDER // HOUR_US))
    assert [(transaction.late, transaction.first // HOUR_US) for transaction in transactions] == expected
    for transaction in transactions:
        for row in (row for stream in Stream for row in transaction.rows().get(stream, [])):
            assert transaction.first <= row[0] <= transaction.last
            assert transaction.late == (row[0] < BORDER)
            assert not transaction.late or row[0] // HOUR_US == transaction.first // HOUR_US
            assert row[0] // DAY_US in transaction.days()


@given(groups)
def test_no_transaction_and_no_slice_is_empty(group: list[dict[Stream, list[int]]]) -> None:
    for transaction in transactions_of(pendings(group)):
        assert transaction.slices
        assert all(any(rows.values()) for _, rows in transaction.slices)


def test_ten_minutes_old_is_not_late_yet() -> None:
    (pending,) = pendings([{Stream.METER: [BORDER - 1, BORDER], Stream.VEHICLE: [BORDER]}])
    fresh, late = transactions_of([pending])
    assert (fresh.late, late.late) == (False, True)
    assert [row[0] for row in fresh.rows()[Stream.METER]] == [BORDER]
    assert [row[0] for row in fresh.rows()[Stream.VEHICLE]] == [BORDER]
    assert [row[0] for row in late.rows()[Stream.METER]] == [BORDER - 1]
    assert Stream.VEHICLE not in late.rows()


def test_the_days_of_a_transaction() -> None:
    (pending,) = pendings([{Stream.METER: [NOW, BORDER - 1, BORDER - DAY_US], Stream.VEHICLE: []}])
    today = NOW // DAY_US
    days = [list(transaction.days()) for transaction in transactions_of([pending])]
    assert days == [[today - 1, today], [today - 2], [today - 1]]


def test_a_group_of_rejected_readings_has_no_transaction() -> None:
    assert transactions_of(pendings([{stream: [] for stream in Stream}])) == []
