"""Sessions made anew wherever readings have changed them, running ones included."""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.analytics.alerts.tables import Connection, columns, hour_of, start_of_hour
from app.analytics.efficiency.evidence import Sides, fetch_near, instant_of, pair_each, settled, settled_margin, us
from app.analytics.efficiency.neighbours import REACH, fetch_sharers
from app.analytics.efficiency.verdict import coverage_of, uncertainty, verdict
from app.analytics.sessions import tables
from app.analytics.sessions.session import Session, rule_of, sessions_of
from app.analytics.sessions.tables import Range, Row
from app.database import snapshot
from app.settings import Settings
from app.telemetry.instant import MAX_AHEAD

# Those of 4,000 vehicles that charge take some seconds of CPU.
RUNNING_PERIOD = timedelta(minutes=5)
# The product of vehicles and minutes; see the evaluator of alerts.
_PAIRED_AT_ONCE = 500_000 * timedelta(minutes=1)


async def make_sessions(
    reading: AsyncConnection,
    writing: Connection,
    vehicles: Collection[int],
    hours: range,
    kept_from: datetime,
    as_of: datetime,
    settings: Settings,
) -> None:
    """Makes the sessions of some vehicles anew that have time in these hours, or may join one that has.

    They are made whole, however far they reach. A session that began before `kept_from` stays as it is.
    """
    near = timedelta(minutes=settings.session_pause_minutes)
    at = start_of_hour(hours.start), start_of_hour(hours.stop)
    ranges = dict.fromkeys(vehicles, (at[0] - near, at[1] + near))
    async with snapshot(reading):
        while ranges:
            ranges = await tables.fetch_reaches(writing, ranges, kept_from)
            further: dict[int, Range] = {}
            for some in _slices(ranges):
                found = await _sessions_in(reading, some, at, settings)
                longer = {vehicle_id: _reach(some[vehicle_id], found[vehicle_id], kept_from) for vehicle_id in some}
                further |= {vehicle_id: reach for vehicle_id, reach in longer.items() if reach != some[vehicle_id]}
                done = {vehicle_id: reach for vehicle_id, reach in some.items() if vehicle_id not in further}
                made = [
                    (vehicle_id, session)
                    for vehicle_id in done
                    for session in _touching(found[vehicle_id], done[vehicle_id])
                    if instant_of(session.start_us) >= kept_from
                ]
                rows = await _rows(reading, made, settings)
                await tables.replace_sessions(writing, done, kept_from, rows, as_of)
            ranges = further


def _slices(ranges: Mapping[int, Range]) -> Iterator[dict[int, Range]]:
    """Yields the ranges in parts, each of vehicles whose ranges begin at about the same time."""
    some: dict[int, Range] = {}
    last = datetime.min.replace(tzinfo=UTC)
    for vehicle_id, reach in sorted(ranges.items(), key=lambda one: (one[1], one[0])):
        first, last = next(iter(some.values()), reach)[0], max(last, reach[1])
        if some and (len(some) + 1) * (last - first) > _PAIRED_AT_ONCE:
            yield some
            some, last = {}, reach[1]
        some[vehicle_id] = reach
    if some:
        yield some


async def _sessions_in(
    connection: AsyncConnection, ranges: Mapping[int, Range], touched: Range, settings: Settings
) -> dict[int, list[Session]]:
    """Returns the sessions of some vehicles by all that may matter in their ranges."""
    start, end = min(start for start, _ in ranges.values()), max(end for _, end in ranges.values())
    found: dict[int, list[Session]] = {}
    for margin in (settled_margin(settings), REACH):
        vehicles = sorted(ranges.keys() - found.keys())
        bounds = start - margin, end + margin
        sharers = await fetch_sharers(connection, {*vehicles}, set(), touched, *bounds)
        sides = await fetch_near(connection, vehicles, *bounds, settings, sharers=sharers)
        chosen = {*vehicles} if margin == REACH else settled(sides, vehicles, *bounds, settings)
        found |= await asyncio.to_thread(_sessions_of, sides, chosen, settings)
        if found.keys() == ranges.keys():
            break
    return found


def _sessions_of(sides: Sides, vehicles: Iterable[int], settings: Settings) -> dict[int, list[Session]]:
    rule = rule_of(settings)
    return {vehicle_id: sessions_of(pairs, rule) for vehicle_id, pairs in pair_each(vehicles, sides, settings).items()}


def _touching(sessions: Iterable[Session], reach: Range) -> list[Session]:
    start, end = map(us, reach)
    return [session for session in sessions if session.start_us <= end and session.end_us >= start]


def _reach(reach: Range, sessions: Iterable[Session], kept_from: datetime) -> Range:
    """Returns the range with the sessions that have time in it, and as much again, since these may be cut."""
    start, end = reach
    touching = _touching(sessions, reach)
    first = max(kept_from, min((instant_of(one.start_us) for one in touching), default=start))
    last = max((instant_of(one.end_us) for one in touching), default=end)
    length = end - start
    return start if first >= start else first - length, end if last <= end else last + length


async def _rows(connection: AsyncConnection, made: list[tuple[int, Session]], settings: Settings) -> list[Row]:
    if not made:
        return []
    instants = [(vehicle_id, instant_of(one.start_us), instant_of(one.end_us)) for vehicle_id, one in made]
    vehicles, starts, ends = columns(instants, 3)
    parameters = {
        "vehicles": vehicles,
        "starts": starts,
        "ends": ends,
        "devices": sorted({*vehicles}),
        "range_from": min(starts).replace(second=0, microsecond=0),
        "range_to": max(ends).replace(second=0, microsecond=0) + timedelta(minutes=1),
    }
    found = await connection.execute(_BATTERIES, parameters)
    batteries = {(vehicle_id, started): battery for vehicle_id, started, *battery in found}
    none = [None, None, None]
    return [
        _row(vehicle_id, started, until, session, batteries.get((vehicle_id, started), none), settings)
        for (vehicle_id, started, until), (_, session) in zip(instants, made, strict=True)
    ]


def _row(
    vehicle_id: int, started: datetime, until: datetime, session: Session, battery: list[int | None], settings: Settings
) -> Row:
    evidence = session.evidence
    coverage = coverage_of(evidence)
    status, _ = verdict(evidence, has_meter=session.meter_id is not None, low_efficiency=settings.low_efficiency)
    soc_start, soc_end, battery_temp_max = battery
    return Row(
        vehicle_id=vehicle_id,
        started=started,
        until=until,
        over_at=instant_of(session.over_us),
        meter_id=session.meter_id,
        dc_milliwh=evidence.dc_milliwh,
        paired_ac_milliwh=evidence.paired_ac_milliwh,
        paired_dc_milliwh=evidence.paired_dc_milliwh,
        uncertainty=uncertainty(evidence),
        status=status,
        peak_milliwatt=session.peak_milliwatt,
        soc_start_centipercent=soc_start,
        soc_end_centipercent=soc_end,
        battery_temp_max_centic=battery_temp_max,
        paired_minutes=coverage.paired,
        shared_minutes=coverage.shared,
        silences=session.silences,
    )


async def make_running(
    reading: AsyncConnection,
    writing: Connection,
    over: int,
    kept_from: datetime,
    as_of: datetime,
    settings: Settings,
) -> None:
    """Makes the sessions anew of the hours that are not over, and tells which sessions have ended; not at each call."""
    last = await tables.fetch_as_of(writing)
    if last is not None and as_of - last < RUNNING_PERIOD:
        return
    touched = await tables.fetch_touched_since(writing, start_of_hour(over))
    vehicles, meters = ({device for stream, device, *_ in touched if stream == each} for each in ("vehicle", "meter"))
    hours = range(over, hour_of(as_of + MAX_AHEAD) + 1)
    since = start_of_hour(over - 1)
    charging = await tables.fetch_beside(writing, vehicles, meters, since)
    if vehicles:
        bounds = {"devices": [*vehicles], "range_from": since, "range_to": start_of_hour(hours.stop)}
        async with snapshot(reading):
            charging |= {vehicle_id for (vehicle_id,) in await reading.execute(_CHARGING, bounds)}
    if charging:
        await make_sessions(reading, writing, charging, hours, kept_from, as_of, settings)
    await tables.tell_ended(writing, as_of)
    await tables.note_as_of(writing, as_of)


# The vehicles among :devices that took energy.
_CHARGING = text("""
    SELECT DISTINCT vehicle_id
    FROM vehicle_minute(:range_from, :range_to, CAST(:devices AS integer[]))
    WHERE dc_milliwh > 0
""")

# State of charge at both ends, and the highest temperature, of the sessions.
_BATTERIES = text("""
    SELECT vehicle_id, started,
           (array_agg(soc_centipercent_min ORDER BY bucket) FILTER (WHERE soc_readings > 0))[1],
           (array_agg(soc_centipercent_max ORDER BY bucket DESC) FILTER (WHERE soc_readings > 0))[1],
           max(battery_temp_centic_max)
    FROM unnest(CAST(:vehicles AS integer[]), CAST(:starts AS timestamptz[]), CAST(:ends AS timestamptz[]))
        AS session (of_vehicle, started, until)
    JOIN vehicle_minute(:range_from, :range_to, CAST(:devices AS integer[]))
        ON vehicle_id = of_vehicle AND bucket BETWEEN date_trunc('minute', started) AND until
    GROUP BY vehicle_id, started
""")
