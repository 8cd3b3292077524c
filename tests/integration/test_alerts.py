"""Alerts: each fault in the field has its alert, order changes nothing, and noise raises none."""

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random
from typing import Any

import httpx
import msgspec
import psycopg
import pytest
from structlog.testing import capture_logs

from app.analytics.alerts import evaluator
from app.analytics.alerts.judge import EVIDENCE
from app.analytics.alerts.listing import answer_of
from app.analytics.efficiency.pairs import Evidence
from app.database import command_connection
from app.policies.invariants import read_policies
from app.settings import Settings
from app.simulator.charging import DAY_US, HOUR_US
from app.simulator.fleet import Fleet
from app.telemetry.reading import MeterReading, VehicleReading
from tests.fixtures.alerts import expect_all, judge_all, judge_once, standing_alerts
from tests.fixtures.commands import command
from tests.fixtures.database import Server
from tests.fixtures.engines import refresh_while_young
from tests.fixtures.policies import apply_policies
from tests.fixtures.readings import Reading, Rows, meter_reading, midnight, store, vehicle_reading
from tests.fixtures.sending import map_vehicle, problem, send, stamp
from tests.fixtures.service import service
from tests.fixtures.waiting import eventually_here
from tests.property.brute_force import performance
from tests.unit.test_grace import Clocks

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
NOTHING = range(0)


def session(
    start: datetime,
    minutes: int,
    name: str,
    *,
    efficiency: float = 0.9,
    meter_id: str | None = None,
    still: range = NOTHING,
    stuck_meter: range = NOTHING,
    stuck_vehicle: range = NOTHING,
    sent_twice: bool = False,
) -> list[Reading]:
    """Returns a charge at about 11 kW, measured each minute by both devices, one of which may be at fault."""
    random, readings = Random(name), list[Reading]()
    for minute in range(minutes):
        ac = random.uniform(0.17, 0.19)
        at = start + minute * MINUTE
        shown = 0.0 if minute in still else 0.18 if minute in stuck_meter else ac
        delivered = 0.171 if minute in stuck_vehicle else ac * efficiency
        on = meter_id or name
        readings.append(meter_reading(at + timedelta(seconds=20), shown, meter_id=on))
        readings.append(vehicle_reading(at + timedelta(seconds=12), delivered, vehicle_id=name, meter_id=on, soc=None))
        if sent_twice:
            # The missing field comes 45 s later.
            readings.append(vehicle_reading(at + timedelta(seconds=57), 0, vehicle_id=name, meter_id=on, soc=50))
    return readings


def spans(rows: Rows, day: datetime) -> dict[tuple[str, str], list[tuple[float, float | None]]]:
    """Returns the hours of day at which alerts opened and closed, by kind and device, without no_data."""
    alerts: dict[tuple[str, str], list[tuple[float, float | None]]] = {}
    for kind, _, device, opened, closed, _ in rows:
        if kind != "no_data":
            span = (opened - day) / HOUR, None if closed is None else (closed - day) / HOUR
            alerts.setdefault((kind, device), []).append(span)
    return alerts


async def test_what_each_fault_is_called(
    database_url: str, connection: psycopg.Connection, client: httpx.AsyncClient
) -> None:
    day = midnight(3)
    at = day + 10 * HOUR
    await store(
        database_url,
        *session(at, 240, "sound"),
        *session(at, 240, "low", efficiency=0.8),
        *session(at, 240, "impossible", efficiency=1.05),
        *session(at, 240, "still-meter", still=range(30, 168)),
        *session(at, 240, "stuck-meter", stuck_meter=range(30, 168)),
        *session(at, 240, "stuck-vehicle", stuck_vehicle=range(30, 90)),
        *session(at, 240, "momentary-zero", still=range(100, 101)),
        *session(at, 240, "sent-twice", sent_twice=True),
        *session(at, 240, "shared-1", meter_id="shared"),
        *session(at, 240, "shared-2", meter_id="shared", efficiency=0.2),
        *session(at, 40, "short", efficiency=0.5),
        *session(at, 2, "too-short", efficiency=0.5),
        *session(at, 29, "hardly-frozen", still=range(29)),
        meter_reading(at, 0.1, meter_id="step"),
        meter_reading(at + MINUTE, 900, meter_id="step"),
    )
    expect_all(connection)
    await judge_all(database_url)
    assert spans(standing_alerts(connection), day) == {
        ("low_efficiency", "low"): [(11, None)],
        ("low_efficiency", "short"): [(11, None)],
        ("impossible_efficiency", "impossible"): [(11, None)],
        ("impossible_efficiency", "still-meter"): [(11, None)],
        ("frozen_meter", "still-meter"): [(11, None)],
        ("frozen_meter", "stuck-meter"): [(11, None)],
        ("frozen_vehicle", "stuck-vehicle"): [(11, None)],
        ("implausible_energy", "step"): [(11, 35)],
    }

    asked = {"kind": "low_efficiency", "vehicleId": "low"}
    (alert,) = (await client.get("/v1/analytics/alerts", params=asked)).json()["alerts"]
    opened = stamp(at + HOUR)
    assert (alert["id"], alert["meterIds"], alert["vehicleIds"]) == (
        f"low_efficiency/vehicle/low/{opened}",
        ["low"],
        ["low"],
    )
    assert (alert["openedAt"], alert["closedAt"]) == (opened, None)
    assert alert["evidence"]["efficiencyRatio"] == pytest.approx(0.8, abs=1e-4)
    assert (alert["evidence"]["minutes"], alert["evidence"]["pairedMinutes"]) == (61, 61)
    assert alert["text"].endswith(
        "in the 24 hours before this alert: efficiency 80.0 %. "
        "Who else charges there: /v1/analytics/meters/low/vehicles?hours=168"
    )
    about = (await client.get("/v1/analytics/alerts", params={"vehicleId": "still-meter", "open": True})).json()
    assert [one["kind"] for one in about["alerts"]] == ["frozen_meter", "impossible_efficiency", "no_data"]
    everything = (await client.get("/v1/analytics/alerts", params={"limit": 1000})).json()["alerts"]
    assert {name for one in everything for name in one["evidence"]} == set(EVIDENCE)


async def test_an_alert_closes_when_a_day_is_better_and_is_retracted_when_the_data_say_otherwise(
    database_url: str, connection: psycopg.Connection
) -> None:
    day = midnight(4)
    low = session(day + 10 * HOUR, 120, "V", efficiency=0.8)
    better = session(day + 12 * HOUR, 600, "V", efficiency=0.9)
    await store(database_url, *low)
    await judge_all(database_url)
    assert spans(standing_alerts(connection), day) == {("low_efficiency", "V"): [(11, None)]}
    await store(database_url, *better)
    await judge_all(database_url)
    # 0.8 over 2 h and 0.9 over n h are 0.87 from n = 4.67 on.
    assert spans(standing_alerts(connection), day) == {("low_efficiency", "V"): [(11, 17)]}
    # The meter was shared, so its minutes prove nothing.
    await store(database_url, *session(day + 10 * HOUR, 120, "W", meter_id="V")[1::2])
    await judge_all(database_url)
    assert spans(standing_alerts(connection), day) == {}
    log = "SELECT transition FROM alert_transition WHERE kind = 'low_efficiency' ORDER BY id"
    assert [row[0] for row in connection.execute(log.encode())] == ["opened", "closed", "retracted"]


async def test_what_lies_between_touched_hours_stays(database_url: str, connection: psycopg.Connection) -> None:
    at = midnight(2) + 6 * HOUR
    readings = session(at, 10 * 60, "V", efficiency=0.8)
    early, late = range(100, 110), range(1000, 1010)
    await store(database_url, *(one for n, one in enumerate(readings) if n not in early and n not in late))
    await judge_all(database_url)
    await store(database_url, *(readings[n] for n in (*early, *late)))
    await judge_all(database_url)
    judged = ", ".join(f"sum({name})::bigint" for name in Evidence._fields)
    meters = [one for one in readings if isinstance(one, MeterReading)]
    vehicles = [one for one in readings if isinstance(one, VehicleReading)]
    first, after = (round(instant.timestamp() * 1_000_000) for instant in (at - HOUR, at + 12 * HOUR))
    slow = performance("V", meters, vehicles, [], from_us=first, to_us=after)
    assert connection.execute(f"SELECT {judged} FROM efficiency_hour".encode()).fetchone() == slow.evidence  # noqa: S608


async def test_silence_is_told_while_it_lasts(
    database_url: str, connection: psycopg.Connection, client: httpx.AsyncClient
) -> None:
    at = datetime.now().astimezone() - 30 * MINUTE
    await store(database_url, meter_reading(at), vehicle_reading(at), meter_reading(at, meter_id="retired"))
    connection.execute("UPDATE meter SET retired_at = now() WHERE external_id = 'retired'")
    expect_all(connection)
    await judge_all(database_url)
    told = (await client.get("/v1/analytics/alerts?open=true")).json()["alerts"]
    assert [(one["kind"], one["deviceId"]) for one in told] == [("no_data", "M1"), ("no_data", "V1")]
    assert datetime.fromisoformat(told[0]["openedAt"]) == at + 10 * MINUTE
    assert datetime.fromisoformat(told[0]["evidence"]["lastSeen"]) == at
    assert told[0]["text"] == f"The meter M1 has sent nothing since {stamp(at.replace(microsecond=0))}."

    await send(client, {"meterId": "M1", "timestamp": stamp(datetime.now().astimezone()), "kwhConsumedAc": 0.1})
    await judge_all(database_url)
    assert [one["deviceId"] for one in (await client.get("/v1/analytics/alerts")).json()["alerts"]] == ["V1"]
    log = "SELECT transition, stream FROM alert_transition WHERE kind <> 'session' ORDER BY id"
    assert connection.execute(log.encode()).fetchall()[2:] == [("closed", "meter")]


async def test_who_retires_a_device_closes_its_alerts_for_those_who_were_told(
    database_url: str, connection: psycopg.Connection, client: httpx.AsyncClient
) -> None:
    await store(database_url, *session(midnight(3), 120, "V", efficiency=0.8, meter_id="M"))
    expect_all(connection)
    await judge_all(database_url)

    def told(*retire: str) -> list[tuple[str, str]]:
        """Returns the transitions of the vehicle that this causes; only closed ones say when they closed."""
        last = connection.execute("SELECT max(id) FROM alert_transition").fetchone()
        if retire:
            assert command("device", *retire, "V", "--stream", "vehicle", DATABASE_URL=database_url).returncode == 0
        rows = connection.execute(
            """
            SELECT transition, kind, closed IS NOT NULL FROM alert_transition
            WHERE id > %s AND stream = 'vehicle' ORDER BY id
            """,
            last,
        ).fetchall()
        assert all(is_closed == (transition == "closed") for transition, _, is_closed in rows)
        return [(transition, kind) for transition, kind, _ in rows]

    assert told("retire") == [("closed", "low_efficiency"), ("closed", "no_data")]
    assert told("retire") == []
    assert (await client.get("/v1/analytics/alerts?open=true&vehicleId=V&kind=low_efficiency")).json()["alerts"] == []
    assert told("retire", "--undo") == [("opened", "low_efficiency")]
    assert told("retire", "--undo") == []
    await judge_all(database_url)
    log = "SELECT transition, kind FROM alert_transition WHERE stream = 'vehicle' ORDER BY id DESC LIMIT 1"
    assert connection.execute(log.encode()).fetchone() == ("opened", "no_data")


def test_a_silence_that_is_over_is_told_in_the_past_tense() -> None:
    opened, closed = datetime(2026, 2, 10, 14, 10, tzinfo=UTC), datetime(2026, 2, 10, 15, 0, 1, 500_000, tzinfo=UTC)
    answer = answer_of("no_data", "meter", "M1", opened, closed, {"lastSeen": "2026-02-10T14:00:00.250000Z"}, [])
    assert answer.text == "The meter M1 was silent from 2026-02-10T14:00:00Z to 2026-02-10T15:00:01Z."


async def test_alerts_concern_a_device_at_either_end_and_of_none_that_is_not_known(
    database_url: str, client: httpx.AsyncClient
) -> None:
    await store(database_url, *session(midnight(3), 120, "V", efficiency=0.8, meter_id="M"))

    def listed(*arguments: str) -> str:
        return command("alerts", "list", *arguments, DATABASE_URL=database_url).stdout

    await judge_all(database_url)
    for device in "V", "M":
        assert "low_efficiency" in listed("--device", device)
    assert listed("--device", "M", "--json") == (await client.get("/v1/analytics/alerts?meterId=M")).text + "\n"
    # A vehicle is not a meter.
    for query, detail in (
        ("vehicleId=nonsense", "There is no vehicle nonsense."),
        ("meterId=V", "There is no meter V."),
        ("meterId=M&vehicleId=M", "There is no vehicle M."),
    ):
        refused = problem(await client.get(f"/v1/analytics/alerts?{query}"), 404, "unknown_device")
        assert refused["detail"] == detail
    of_command = command("alerts", "list", "--device", "nonsense", DATABASE_URL=database_url)
    assert (of_command.returncode, of_command.stderr) == (1, "wattline: There is no device nonsense.\n")


def test_the_command_says_when_nothing_has_been_judged_yet(database_url: str) -> None:
    told = command("alerts", "list", DATABASE_URL=database_url).stdout
    assert told == "0 alerts; no hour has been judged yet.\n"


async def test_a_mapping_into_the_past_is_judged(
    database_url: str, connection: psycopg.Connection, client: httpx.AsyncClient
) -> None:
    day = midnight(2)
    readings = session(day + 10 * HOUR, 120, "V", efficiency=0.8, meter_id="M")
    unnamed = [one if isinstance(one, MeterReading) else vehicle_unnamed(one) for one in readings]
    await store(database_url, *unnamed)
    await judge_all(database_url)
    assert spans(standing_alerts(connection), day) == {}
    assert (await map_vehicle(client, "V", "M")).status_code == httpx.codes.OK
    await judge_all(database_url)
    assert spans(standing_alerts(connection), day) == {("low_efficiency", "V"): [(11, None)]}


async def test_a_mapping_touches_hours_that_are_materialised_as_minutes_only(
    database_url: str, connection: psycopg.Connection, client: httpx.AsyncClient, engine: str
) -> None:
    at = midnight(2) + 10 * HOUR
    await store(database_url, vehicle_reading(midnight(1), vehicle_id="V", meter_id=None))
    connection.execute("CALL refresh_aggregates()")
    await store(database_url, vehicle_reading(at, vehicle_id="V", meter_id=None))
    if engine == "timescale":
        connection.execute("CALL refresh_continuous_aggregate('vehicle_minute_cagg', %s, %s)", [at - HOUR, at + HOUR])
    connection.execute("DELETE FROM touched_hour")
    assert (await map_vehicle(client, "V", "M")).status_code == httpx.codes.OK
    touched = connection.execute("SELECT hour FROM touched_hour WHERE stream = 'vehicle' ORDER BY 1").fetchall()
    assert touched == [(at,), (midnight(1),)]


async def test_a_mapping_touches_hours_as_far_back_as_minutes_are_retained(
    database_url: str, client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    policies = read_policies()
    longer = dict.fromkeys(("meter_reading", "vehicle_reading", "meter_minute", "vehicle_minute"), "400 days")
    with command_connection(database_url) as migrating, migrating.begin():
        apply_policies(migrating, msgspec.structs.replace(policies, retention=policies.retention | longer))
    days = [midnight(300), midnight(170)]
    await store(database_url, *(vehicle_reading(day, vehicle_id="V", meter_id=None) for day in days))
    refresh_while_young(connection, days[0], days[-1] + 24 * HOUR)
    connection.execute("DELETE FROM touched_hour")
    assert (await map_vehicle(client, "V", "M")).status_code == httpx.codes.OK
    touched = connection.execute("SELECT hour FROM touched_hour WHERE stream = 'vehicle' ORDER BY 1").fetchall()
    assert touched == [(day,) for day in days]


def vehicle_unnamed(reading: Any) -> Reading:
    at = datetime.fromtimestamp(reading.ts_us / 1_000_000).astimezone()
    return vehicle_reading(at, reading.dc_milliwh / 1_000_000, vehicle_id="V", meter_id=None)


async def test_alerts_come_in_pages_and_as_csv(
    database_url: str, connection: psycopg.Connection, client: httpx.AsyncClient
) -> None:
    await store(database_url, *(meter_reading(midnight(2), meter_id=f"M{n}") for n in range(5)))
    expect_all(connection)
    await judge_all(database_url)
    path, seen = "/v1/analytics/alerts?limit=2&kind=no_data", list[str]()
    while path:
        page = await client.get(path)
        seen += [one["deviceId"] for one in page.json()["alerts"]]
        path = page.headers.get("Link", "").partition(">")[0].removeprefix("<")
    assert seen == [f"M{n}" for n in range(5)]

    csv = await client.get("/v1/analytics/alerts?meterId=M3", headers={"Accept": "text/csv"})
    header, row = csv.text.splitlines()
    assert header == (
        "id,kind,stream,deviceId,meterIds,vehicleIds,openedAt,closedAt,text,efficiencyRatio,uncertainty,acKwh,"
        "dcKwh,lossKwh,minutes,pairedMinutes,sharedMinutes,frozenMinutes,from,to,lastSeen,readings,limitKw,looksLike,"
        "currentAcKwh,currentDcKwh,currentLossKwh,currentLossCost,currentEfficiencyRatio,lossToDateKwh,lossToDateCost,"
        "acknowledgedAt,acknowledgedBy,acknowledgedReason"
    )
    empty = await client.get("/v1/analytics/alerts?open=false", headers={"Accept": "text/csv"})
    assert empty.text.splitlines() == [header]
    assert row.startswith(f"no_data/meter/M3/{stamp(midnight(2) + 10 * MINUTE)},no_data,meter,M3,M3,,")
    for query in ("after=nonsense", "after=a/b/c/2026-01-01T00:00:00", "limit=0", "kind=none", "open=perhaps"):
        problem(await client.get(f"/v1/analytics/alerts?{query}"), 400, "invalid_parameter")
    problem(await client.get("/v1/analytics/alerts?from=2026-01-01T00:00:00"), 400, "invalid_time_range")
    for query in ("vehicleId=%00", "meterId=%00"):
        problem(await client.get(f"/v1/analytics/alerts?{query}"), 400, "invalid_parameter")


async def test_the_ranking_begins_with_the_worst_of_whom_enough_is_known(
    database_url: str, client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    at = midnight(2) + 10 * HOUR
    await store(
        database_url,
        *session(at, 120, "sound"),
        *session(at, 120, "low", efficiency=0.8),
        *session(at, 120, "retired", efficiency=0.5),
        *session(at, 2, "short", efficiency=0.1),
        *session(at, 120, "shared-1", meter_id="shared"),
        *session(at, 120, "shared-2", meter_id="shared"),
    )
    connection.execute("UPDATE vehicle SET retired_at = now() WHERE external_id = 'retired'")
    await judge_all(database_url)
    window = {"from": stamp(at), "to": stamp(at + 110 * MINUTE)}
    answer = (await client.get("/v1/analytics/efficiency", params=window)).json()
    assert (answer["from"], answer["to"]) == (stamp(at), stamp(at + 2 * HOUR))
    assert [(one["id"], one["status"]) for one in answer["ranking"]] == [
        ("low", "low_efficiency"),
        ("sound", "ok"),
        ("short", "insufficient_data"),
        ("shared-1", "insufficient_data"),
        ("shared-2", "insufficient_data"),
    ]
    low = answer["ranking"][0]
    # The first readings carry energy of the hour before, and the last minute has not ended.
    assert low["coverage"] == {"minutes": 119, "paired": 119, "shared": 0, "unpaired": 0, "doubtful": 0}
    assert low["lossKwh"] == pytest.approx(low["acKwh"] - low["dcKwh"])
    for energy in ("acKwh", "dcKwh"):
        assert answer["totals"][energy] == pytest.approx(sum(one[energy] for one in answer["ranking"]))
    hours = {"from": answer["from"], "to": answer["to"]}
    of_performance = (await client.get("/v1/analytics/performance/low", params=hours)).json()
    assert low["efficiencyRatio"] == of_performance["efficiencyRatio"]

    worst = (await client.get("/v1/analytics/efficiency", params={**window, "worst": 1, "by": "meter"})).json()
    assert [one["id"] for one in worst["ranking"]] == ["retired"]
    csv = await client.get("/v1/analytics/efficiency", params=window, headers={"Accept": "text/csv"})
    assert csv.text.splitlines()[0] == (
        "id,efficiencyRatio,uncertainty,acKwh,dcKwh,lossKwh,lossCost,minutes,paired,shared,unpaired,doubtful,status"
    )
    assert len(csv.text.splitlines()) == 6
    assert (csv.headers["Wattline-As-Of"], csv.headers["Wattline-Judged-To"]) == (answer["asOf"], answer["judgedTo"])
    empty = (await client.get("/v1/analytics/efficiency")).json()
    assert (empty["ranking"], empty["totals"]["efficiencyRatio"]) == ([], None)
    problem(await client.get("/v1/analytics/efficiency?worst=0"), 400, "invalid_parameter")
    problem(await client.get("/v1/analytics/efficiency?to=2026-01-01T00:00:00"), 400, "invalid_time_range")


async def test_a_ranking_ends_with_the_last_hour_that_is_judged_unless_it_is_asked_for_more(
    client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    async def ranking(**window: str) -> Any:
        return (await client.get("/v1/analytics/efficiency", params=window)).json()

    # The time is in the future, where the service's own evaluator does not interfere.
    for judged, judged_to in ("11:04:59.9", "10:00"), ("11:05", "11:00"), ("11:59", "11:00"):
        connection.execute("UPDATE installation SET judged_as_of = %s", [f"2099-11-20T{judged}+00:00"])
        end = f"2099-11-20T{judged_to}:00Z"
        answer = await ranking()
        assert (answer["from"], answer["to"], answer["judgedTo"]) == (end.replace("20T", "19T"), end, end)
        later = await ranking(to="2099-11-20T12:00:00Z")
        assert (later["to"], later["judgedTo"]) == ("2099-11-20T12:00:00Z", end)


async def test_a_ranking_stays_until_hours_have_been_judged_anew(
    database_url: str, client: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    async def ranking() -> Any:
        return (await client.get("/v1/analytics/efficiency")).json()

    assert (await ranking())["ranking"] == []
    await store(database_url, *session(datetime.now(UTC).replace(minute=0) - 6 * HOUR, 120, "V1"))
    await judge_all(database_url)
    first = await ranking()
    assert [one["id"] for one in first["ranking"]] == ["V1"]
    connection.execute("UPDATE vehicle SET external_id = 'V2'")
    assert await ranking() == first
    await judge_all(database_url)
    second = await ranking()
    assert [one["id"] for one in second["ranking"]] == ["V2"]
    assert second["asOf"] > first["asOf"]


async def test_what_is_no_longer_kept_is_not_judged_again(database_url: str, connection: psycopg.Connection) -> None:
    day = midnight(2)
    await store(database_url, *session(day + 10 * HOUR, 120, "V", efficiency=0.8))
    await judge_all(database_url)
    before = standing_alerts(connection)
    connection.execute("UPDATE efficiency_hour SET hour = hour - INTERVAL '200 days'")
    connection.execute("UPDATE alert SET opened = opened - INTERVAL '200 days' WHERE kind = 'low_efficiency'")
    connection.execute(
        """
        INSERT INTO touched_hour
        SELECT 'vehicle', vehicle_id, hour, now() - INTERVAL '1 hour' FROM efficiency_hour
        """
    )
    await judge_all(database_url)
    after = standing_alerts(connection)
    assert [(kind, device) for kind, _, device, *_ in after] == [(kind, device) for kind, _, device, *_ in before]
    assert connection.execute("SELECT count(*) FROM touched_hour").fetchone() == (0,)


async def test_days_of_an_import_are_judged_once_they_are_refreshed(
    database_url: str, connection: psycopg.Connection
) -> None:
    old, recent = midnight(20), midnight(2)
    await store(
        database_url,
        *session(old + 10 * HOUR, 120, "old", efficiency=0.8),
        *session(recent + 10 * HOUR, 120, "recent", efficiency=0.8),
    )
    connection.execute(
        """
        INSERT INTO import_journal
        VALUES ('1', 'h.csv', 1, 1, '', 0, 0, 0, 0, 0, 0, tstzmultirange(tstzrange(%s, NULL)))
        """,
        [old],
    )
    await judge_all(database_url)
    # Policies refresh the last week, however long the import takes.
    assert spans(standing_alerts(connection), recent) == {("low_efficiency", "recent"): [(11, None)]}
    connection.execute("CALL refresh_aggregates(%s, %s)", [old, old + 24 * HOUR])
    connection.execute("UPDATE import_journal SET touched = '{}'")
    await judge_all(database_url)
    assert spans(standing_alerts(connection), old)["low_efficiency", "old"] == [(11, None)]


async def test_hours_are_judged_while_late_readings_trickle_in(
    database_url: str, connection: psycopg.Connection
) -> None:
    day = midnight(2)
    await store(database_url, *session(day + 10 * HOUR, 120, "V", efficiency=0.8))
    connection.execute("CALL refresh_aggregates()")
    connection.execute("UPDATE touched_hour SET at = now() + INTERVAL '65 s'")
    notes = connection.execute("SELECT count(*) FROM touched_hour").fetchone()
    assert not await judge_once(database_url)
    assert spans(standing_alerts(connection), day) == {("low_efficiency", "V"): [(11, None)]}
    # Further readings may come that these notes cover.
    assert connection.execute("SELECT count(*) FROM touched_hour").fetchone() == notes


async def test_a_backlog_holds_up_neither_the_last_day_nor_the_next_round(
    database_url: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "PERIOD_SECONDS", 0)
    now = datetime.now().astimezone().replace(minute=0, second=0, microsecond=0)
    await store(
        database_url,
        *session(now - 6 * HOUR, 60, "new", efficiency=0.8),
        *session(midnight(6), 60, "old", efficiency=0.8),
    )
    connection.execute("UPDATE touched_hour SET at = now() - INTERVAL '1 hour'")
    connection.execute("CALL refresh_aggregates()")
    assert await judge_once(database_url)
    assert judged_vehicles(connection) == ["new"]
    assert connection.execute("SELECT judged_as_of FROM installation").fetchone() == (None,)
    assert not await judge_once(database_url)
    assert judged_vehicles(connection) == ["new", "old"]
    assert connection.execute("SELECT judged_as_of IS NULL FROM installation").fetchone() == (False,)


def judged_vehicles(connection: psycopg.Connection) -> list[str]:
    judged = "SELECT external_id FROM vehicle WHERE id IN (SELECT vehicle_id FROM efficiency_hour) ORDER BY 1"
    return [name for (name,) in connection.execute(judged.encode())]


def has_judged(connection: psycopg.Connection) -> bool:
    return connection.execute("SELECT FROM installation WHERE judged_as_of IS NOT NULL").fetchone() is not None


async def test_after_an_outage_of_the_database_nobody_is_silent_at_first(
    database_url: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks()
    monkeypatch.setattr(evaluator, "time", clocks)
    monkeypatch.setattr(evaluator, "PERIOD_SECONDS", 0.1)
    await store(database_url, meter_reading(datetime.now().astimezone() - HOUR))
    expect_all(connection)
    connection.execute("CALL refresh_aggregates()")
    connection.execute("ALTER TABLE installation RENAME TO away")
    judging = asyncio.create_task(evaluator.judge_forever(database_url, Settings()))
    try:
        with capture_logs() as log:
            for rounds in range(4):
                await eventually_here(lambda: len(log) > rounds)  # noqa: B023
                clocks.advance(evaluator._GRACE_SECONDS / 3)
        connection.execute("ALTER TABLE away RENAME TO installation")
        await eventually_here(lambda: has_judged(connection))
        assert standing_alerts(connection) == []
        clocks.advance(evaluator._GRACE_SECONDS + 1)
        await eventually_here(lambda: standing_alerts(connection))
    finally:
        judging.cancel()
        await asyncio.wait({judging})


async def test_of_two_processes_one_judges(database_url: str, connection: psycopg.Connection) -> None:
    await store(database_url, *session(midnight(2), 120, "V", efficiency=0.8))
    with psycopg.connect(database_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtext('wattline alerts'))")
        await judge_all(database_url)
        assert standing_alerts(connection) == []
    await judge_all(database_url)
    assert standing_alerts(connection) != []


# It is the same day each time, 2026-01-14.
FROM_US = 20_467 * DAY_US
CHARGERS = 8


def faulty_day(start: datetime) -> tuple[Fleet, list[list[dict[str, Any]]]]:
    """Returns what a small fleet delivers in a day, by the hour, with faults of every kind."""
    fleet = Fleet(CHARGERS)
    later = start - datetime.fromtimestamp(FROM_US / 1_000_000).astimezone()
    hours = range(FROM_US, FROM_US + DAY_US, HOUR_US)
    return fleet, [[faulty(reading, later) for reading in fleet.deliveries(at, at + HOUR_US)] for at in hours]


def faulty(reading: dict[str, Any], later: timedelta) -> dict[str, Any]:
    """Returns the reading of another day: one meter stands still, one sends totals; of the vehicles, two are wrong."""
    at = datetime.fromisoformat(reading["timestamp"]) + later
    reading = {**reading, "timestamp": stamp(at)}
    match reading:
        case {"vehicleId": "vehicle-0001"}:
            reading["kwhDeliveredDc"] = round(1.2 * reading["kwhDeliveredDc"], 6)
        case {"vehicleId": "vehicle-0004"} if 4 <= at.hour < 20:
            reading["kwhDeliveredDc"] = 0.1
        case {"meterId": "meter-0002", "kwhConsumedAc": _} if 4 <= at.hour < 20:
            reading["kwhConsumedAc"] = round(300 + at.hour + at.minute / 60, 6)
        case {"meterId": "meter-0006", "kwhConsumedAc": _} if 4 <= at.hour < 20:
            reading["kwhConsumedAc"] = 0.0
    return reading


async def feed(url: str, order: int) -> None:
    """Sends the day in an order of its own: whole hours up to six hours late, some of them in pieces, some twice."""
    random = Random(order)
    fleet, hours = faulty_day(midnight(2))
    late = 6 if order else 0
    pieces = [(n + random.uniform(0, late), hour[part::2]) for n, hour in enumerate(hours) for part in (0, 1)]
    pieces += [(random.uniform(0, 30), piece) for _, piece in random.sample(pieces, 3)]
    pieces.sort(key=lambda piece: piece[0])
    mapped = random.randrange(len(pieces))
    cuts = [0, *sorted(random.sample(range(len(pieces)), 2)), len(pieces)]
    for first, last in pairwise(cuts):
        # Each hour has another service: a writer relies on its notes of touched hours for a minute, which is over here.
        async with service(Settings(database_url=url)) as client:
            for number, (_, readings) in enumerate(pieces[first:last], first):
                await send(client, readings)
                if number == mapped:
                    for vehicle_id, meter_id in fleet.mappings():
                        assert (await map_vehicle(client, vehicle_id, meter_id)).status_code == httpx.codes.OK
        await judge_all(url)


ENERGIES = """
    SELECT kind, stream, external_id, opened, alert.ac_milliwh, dc_milliwh, loss_milliwh
    FROM alert JOIN device USING (stream) WHERE id = device_id ORDER BY 1, 2, 3, 4
"""


async def fed_in_order(server: Server, order: int) -> Rows:
    url = server.clone()
    try:
        await feed(url, order)
        with psycopg.connect(url) as connection:
            energies = connection.execute(ENERGIES).fetchall()
            assert any(loss for *_, loss in energies)
            return [*standing_alerts(connection), *energies]
    finally:
        server.drop(url)


async def test_a_day_of_every_fault_ends_in_the_same_alerts_in_any_order(server: Server) -> None:
    first = await fed_in_order(server, 0)
    kinds = {kind for kind, *_ in first}
    assert kinds == {"low_efficiency", "impossible_efficiency", "frozen_meter", "frozen_vehicle", "implausible_energy"}
    assert await fed_in_order(server, 1) == first


@pytest.mark.soak
async def test_a_day_of_every_fault_ends_in_the_same_alerts_in_twenty_orders(server: Server) -> None:
    first = await fed_in_order(server, 0)
    for order in range(2, 22):
        assert await fed_in_order(server, order) == first, order
