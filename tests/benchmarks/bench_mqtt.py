"""A spike of 10,000 messages a second, of one reading each, for 30 seconds, and the lag of the stored readings."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.fixtures.broker import Broker, consuming
from tests.fixtures.flood import Flood
from tests.fixtures.waiting import eventually

DEVICES = 10_000
RATES = [5_000, 10_000]
SECONDS = 30
TICK_SECONDS = 0.05


@pytest.mark.parametrize("rate", RATES)
def test_spike(
    database_url: str,
    connection: psycopg.Connection,
    broker: Broker,
    benchmark: BenchmarkFixture,
    report: Callable[[str], None],
    rate: int,
) -> None:
    flood = Flood(broker.port)
    with consuming(database_url, broker):
        flood.publish([message(device) for device in range(DEVICES)])  # registers the devices
        await_stored(connection, DEVICES)
        lags: list[float] = []
        seconds = benchmark.pedantic(lambda: spike(flood, connection, rate, lags), rounds=1)  # type: ignore[no-untyped-call]
        started = time.monotonic()
        await_stored(connection, DEVICES + rate * SECONDS)
        caught_up = time.monotonic() - started
    flood.close()
    report(
        f"{rate} messages/s for {seconds:.1f} s: lag after 5, 10, ... s: "
        f"{', '.join(f'{lag:.2f}' for lag in lags)} s; all stored {caught_up:.2f} s after the last"
    )


def spike(flood: Flood, connection: psycopg.Connection, rate: int, lags: list[float]) -> float:
    """Publishes the spike; returns how long it took."""
    of_tick = round(rate * TICK_SECONDS)
    started = time.monotonic()
    for tick in range(round(SECONDS / TICK_SECONDS)):
        time.sleep(max(0.0, started + tick * TICK_SECONDS - time.monotonic()))
        flood.publish([message(n % DEVICES) for n in range(tick * of_tick, (tick + 1) * of_tick)])
        if (tick + 1) % round(5 / TICK_SECONDS) == 0:
            lags.append(lag_seconds(connection))
    return time.monotonic() - started


def message(device: int) -> tuple[str, bytes]:
    """Returns a message with a reading of now."""
    now = datetime.now(UTC).isoformat()
    return f"telemetry/meter/m{device}", f'{{"timestamp":"{now}","kwhConsumedAc":0.12,"voltage":230.1}}'.encode()


def lag_seconds(connection: psycopg.Connection) -> float:
    """Returns the age of the newest stored reading, which was sent as soon as it was stamped."""
    ((lag,),) = connection.execute("SELECT clock_timestamp() - max(ts) FROM meter_state").fetchall()
    assert isinstance(lag, timedelta)
    return lag.total_seconds()


def await_stored(connection: psycopg.Connection, count: int) -> None:
    """Waits until the newest states stand still: then everything is stored, and counted once."""
    counted = "SELECT count(*) FROM meter_reading"
    eventually(lambda: connection.execute(counted).fetchall() == [(count,)], seconds=120)
