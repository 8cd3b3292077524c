"""Sessions: made anew wherever readings change them, the same rows in any order of arrival."""

from datetime import UTC, datetime, timedelta
from random import Random

import httpx
import msgspec
import psycopg
import pytest

from app.analytics.efficiency.evidence import us
from app.analytics.efficiency.rhythm import HOUR_US
from app.telemetry.reading import MeterReading
from tests.fixtures.alerts import judge_all
from tests.fixtures.commands import command
from tests.fixtures.readings import Reading, Rows, meter_reading, store, vehicle_reading
from tests.fixtures.sending import performance, problem, stamp

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
MADE = """
    SELECT vehicle.external_id, meter.external_id, started, until, over_at, dc_milliwh, paired_ac_milliwh,
           paired_dc_milliwh, uncertainty, session.status, peak_milliwatt, soc_start_centipercent,
           soc_end_centipercent, battery_temp_max_centic, paired_minutes, shared_minutes, silences
    FROM charging_session AS session
    JOIN vehicle ON vehicle.id = vehicle_id
    LEFT JOIN meter ON meter.id = meter_id
    ORDER BY 1, started
"""


def charge(
    start: datetime, minutes: int, name: str = "V1", *, meter_id: str = "M1", every: int = 1, idle: int = 30
) -> list[Reading]:
    """Returns a charge at 6 kW DC of 6.6 kW AC, with idle minutes before and after it."""
    readings: list[Reading] = []
    for minute in range(-idle, minutes + idle + 1):
        at, power = start + minute * MINUTE, 1 if 0 < minute <= minutes else 0
        readings.append(meter_reading(at, 0.11 * power, meter_id=meter_id))
        if minute % every == 0:
            taken = len([each for each in range(minute - every + 1, minute + 1) if 0 < each <= minutes])
            soc = 20 + max(0, min(minute, minutes)) // 2
            readings.append(
                vehicle_reading(at, 0.1 * taken, vehicle_id=name, meter_id=meter_id, soc=soc, battery_temp=20 + power)
            )
    return readings


def made(connection: psycopg.Connection) -> Rows:
    return connection.execute(MADE).fetchall()


def hours_ago(hours: int) -> datetime:
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - hours * HOUR


async def make_again(connection: psycopg.Connection, url: str) -> None:
    connection.execute("UPDATE installation SET sessions_as_of = NULL")
    await judge_all(url)


async def test_a_charge_is_a_session_with_its_evidence(database_url: str, connection: psycopg.Connection) -> None:
    start = hours_ago(8)
    await store(database_url, *charge(start, 100))
    await judge_all(database_url)
    ((vehicle, meter, started, until, over_at, dc, ac, paired_dc, unsure, status, peak, *rest),) = made(connection)
    assert (vehicle, meter, started, until) == ("V1", "M1", start, start + 100 * MINUTE)
    assert over_at == until + 15 * MINUTE
    assert (dc, ac, paired_dc, unsure, status) == (10_000_000, 11_000_000, 10_000_000, 0, "ok")
    assert (peak, *rest) == (6_000_000, 2_000, 7_000, 2_100, 100, 0, 0)


async def test_a_late_batch_joins_divides_and_lengthens_sessions(
    database_url: str, connection: psycopg.Connection
) -> None:
    start = hours_ago(20)
    sent = charge(start, 300)

    def of(first: int, last: int) -> list[Reading]:
        since, until = (us(start + minute * MINUTE) for minute in (first, last))
        return [one for one in sent if since <= one.ts_us < until]

    await store(database_url, *of(-30, 60), *of(200, 250))
    await judge_all(database_url)
    assert [row[2:4] for row in made(connection)] == [
        (start, start + 59 * MINUTE),
        (start + 199 * MINUTE, start + 249 * MINUTE),
    ]
    await store(database_url, *of(60, 200))
    await judge_all(database_url)
    assert [row[2:4] for row in made(connection)] == [(start, start + 249 * MINUTE)]
    await store(database_url, *of(250, 331))
    await judge_all(database_url)
    assert [row[2:4] for row in made(connection)] == [(start, start + 300 * MINUTE)]


async def test_a_session_that_goes_on_is_in_the_table(database_url: str, connection: psycopg.Connection) -> None:
    start = datetime.now(UTC).replace(second=0, microsecond=0) - 40 * MINUTE
    await store(database_url, *charge(start, 38, idle=0))
    await judge_all(database_url)
    ((_, _, started, until, over_at, *_),) = made(connection)
    assert (started, until) == (start, start + 38 * MINUTE)
    ((as_of,),) = connection.execute("SELECT sessions_as_of FROM installation").fetchall()
    assert as_of < over_at
    await store(database_url, vehicle_reading(start + 39 * MINUTE, 0.1), meter_reading(start + 39 * MINUTE, 0.11))
    await make_again(connection, database_url)
    assert [row[2:4] for row in made(connection)] == [(start, start + 39 * MINUTE)]


ORDERS = [*range(3), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(3, 20))]


@pytest.mark.parametrize("seed", ORDERS)
async def test_any_order_of_arrival_ends_in_the_same_sessions(
    database_url: str, connection: psycopg.Connection, seed: int
) -> None:
    random, start = Random(seed), hours_ago(30)
    drawn: dict[tuple[str, int], MeterReading] = {}
    sent: dict[tuple[str, int], Reading] = {}
    for name, meter_id, begin, minutes, every in (
        ("V1", "M1", 0, 100, 1),
        ("V1", "M1", 160, 90, 1),
        ("V2", "M1", 60, 400, 5),
        ("V3", "M2", 0, 600, 20),
        ("V4", "M3", 700, 200, 1),
    ):
        for one in charge(start + begin * MINUTE, minutes, name, meter_id=meter_id, every=every):
            if isinstance(one, MeterReading):
                before = drawn.get((meter_id, one.ts_us))
                ac_milliwh = (one.ac_milliwh or 0) + ((before and before.ac_milliwh) or 0)
                drawn[meter_id, one.ts_us] = msgspec.structs.replace(one, ac_milliwh=ac_milliwh)
            else:
                sent[name, one.ts_us] = one
    parts: dict[int, list[Reading]] = {part: [] for part in range(4)}
    of_block: dict[tuple[str, int], int] = {}
    # Six hours of a device come together, some of them late, and single readings at any time.
    for (device, ts_us), reading in {**drawn, **sent}.items():
        block = of_block.setdefault((device, ts_us // (6 * HOUR_US)), random.randrange(4))
        parts[block if random.random() < 0.97 else random.randrange(4)].append(reading)
    for part in parts.values():
        await store(database_url, *part)
        await judge_all(database_url)
    piece_by_piece = made(connection)
    assert len(piece_by_piece) >= 5
    connection.execute("TRUNCATE charging_session, session_hour, efficiency_hour")
    connection.execute(
        """
        INSERT INTO touched_hour (stream, device_id, hour, at)
        SELECT stream, id, hour, now() - INTERVAL '1 hour'
        FROM device, generate_series(%s::timestamptz, now(), '1 hour') AS hour
        ON CONFLICT DO NOTHING
        """,
        [start - HOUR],
    )
    await make_again(connection, database_url)
    assert piece_by_piece == made(connection)


async def test_sessions_are_listed_by_page_filter_and_as_csv(
    database_url: str, connection: psycopg.Connection, client: httpx.AsyncClient
) -> None:
    start = hours_ago(30)
    for number in range(5):
        await store(database_url, *charge(start + number * 4 * HOUR, 100, f"V{number % 2}", meter_id=f"M{number % 2}"))
    await store(database_url, *charge(start, 100, "alone", meter_id="M9")[1::2])
    await judge_all(database_url)

    async def listed(path: str) -> list[tuple[str, datetime]]:
        answer = await client.get(path)
        assert answer.status_code == httpx.codes.OK, answer.text
        return [(one["vehicleId"], datetime.fromisoformat(one["start"])) for one in answer.json()["sessions"]]

    every = await listed("/v1/analytics/sessions")
    assert every == [
        *((f"V{number % 2}", start + number * 4 * HOUR) for number in (4, 3, 2, 1)),
        ("V0", start),
        ("alone", start),
    ]
    paged, path = [], "/v1/analytics/sessions?limit=2"
    while path:
        answer = await client.get(path)
        paged += await listed(path)
        path = answer.links.get("next", {}).get("url", "")
    assert paged == every
    assert await listed("/v1/analytics/sessions?vehicle=V1") == [one for one in every if one[0] == "V1"]
    assert await listed("/v1/analytics/sessions?meter=M1") == [one for one in every if one[0] == "V1"]
    assert await listed("/v1/analytics/sessions?status=insufficient_data") == [("alone", start)]
    later = stamp(start + 7 * HOUR)
    assert await listed(f"/v1/analytics/sessions?from={later}") == every[:3]
    assert await listed(f"/v1/analytics/sessions?to={later}") == every[3:]

    answer = (await client.get("/v1/analytics/sessions?vehicle=V0&limit=1")).json()
    assert datetime.fromisoformat(answer["judgedTo"]) <= datetime.fromisoformat(answer["asOf"])
    (session,) = answer["sessions"]
    assert session == {
        "vehicleId": "V0",
        "meterId": "M0",
        "start": stamp(start + 16 * HOUR),
        "end": stamp(start + 16 * HOUR + 100 * MINUTE),
        "dcKwh": 10,
        "acKwh": 11,
        "lossKwh": 1,
        "efficiencyRatio": pytest.approx(10 / 11),
        "uncertainty": 0,
        "status": "ok",
        "peakKw": 6,
        "socStart": 20,
        "socEnd": 70,
        "batteryTempMax": 21,
        "pairedMinutes": 100,
        "sharedMinutes": 0,
        "silences": 0,
    }
    answer = await client.get("/v1/analytics/sessions?vehicle=V0&limit=1", headers={"Accept": "text/csv"})
    names, row = answer.text.splitlines()
    assert names == ",".join(session)
    assert row.startswith(f"V0,M0,{session['start']},{session['end']},10.0,11.0,1.0,0.909")
    printed = command("sessions", "--vehicle", "V0", "--limit", "2", DATABASE_URL=database_url).stdout
    assert [line.split()[0] for line in printed.splitlines()] == ["vehicle", "V0", "V0", "The"]


@pytest.mark.parametrize("query", ["vehicle=nobody", "meter=none"])
async def test_sessions_of_an_unknown_device_are_refused(client: httpx.AsyncClient, query: str) -> None:
    problem(await client.get(f"/v1/analytics/sessions?{query}"), 404, "unknown_device")


@pytest.mark.parametrize("query", ["after=nowhere", "from=2026-02-10T14:00:00", "status=good", "limit=0"])
async def test_bad_parameters_of_sessions_are_refused(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"/v1/analytics/sessions?{query}")).status_code == httpx.codes.BAD_REQUEST


async def test_a_running_session_has_no_end(
    database_url: str, connection: psycopg.Connection, client: httpx.AsyncClient
) -> None:
    start = datetime.now(UTC).replace(second=0, microsecond=0) - 40 * MINUTE
    await store(database_url, *charge(start, 38, idle=0))
    await make_again(connection, database_url)
    (session,) = (await client.get("/v1/analytics/sessions")).json()["sessions"]
    assert session["end"] is None


async def test_sums_over_sessions_are_the_performance(database_url: str, client: httpx.AsyncClient) -> None:
    start = hours_ago(20)
    await store(database_url, *charge(start, 100), *charge(start + 4 * HOUR, 200))
    await judge_all(database_url)
    window = {"from": stamp(start - HOUR), "to": stamp(start + 12 * HOUR)}
    whole = await performance(client, "V1", **window)
    sessions = (await client.get("/v1/analytics/sessions", params=window)).json()["sessions"]
    for member, of_whole in (
        ("dcKwh", "totalDcDelivery"),
        ("acKwh", "totalAcConsumption"),
        ("lossKwh", "energyLossKwh"),
    ):
        assert sum(session[member] for session in sessions) == pytest.approx(whole[of_whole], rel=1e-9)


TOLD = """
    SELECT transition, opened, closed, (evidence ->> 'dcKwh')::float FROM alert_transition
    WHERE kind = 'session' ORDER BY id
"""


async def test_a_session_is_told_once_and_again_when_its_energy_changes(
    database_url: str, connection: psycopg.Connection
) -> None:
    start = hours_ago(8)
    sent = charge(start, 100)
    late = [one for one in sent if us(start + 20 * MINUTE) < one.ts_us <= us(start + 30 * MINUTE)]
    await store(database_url, *(one for one in sent if one not in late))
    await store(database_url, *charge(hours_ago(60), 100, "old", meter_id="M2"))
    for _ in range(2):
        await make_again(connection, database_url)
    ((transition, opened, closed, _),) = connection.execute(TOLD).fetchall()
    assert (transition, opened, closed) == ("ended", start, start + 100 * MINUTE)
    await store(database_url, *late)
    for _ in range(2):
        await make_again(connection, database_url)
    assert connection.execute(TOLD).fetchall()[1:] == [("changed", start, start + 100 * MINUTE, pytest.approx(10))]
