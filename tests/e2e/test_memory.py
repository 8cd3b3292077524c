"""The memory that the service needs."""

import asyncio
import time

import httpx
import msgspec
import pytest

from app.simulator.clock import MINUTE_US
from app.simulator.fleet import Fleet
from tests.fixtures.service import Process

LIMIT_BYTES = 250_000_000
SECONDS = 60
CLIENTS = 8
CHARGERS = 530  # about 1,000 readings a minute


async def send_for_a_minute(base_url: str) -> int:
    """Eight clients send batches of about 1,000 readings without pause; returns how many were stored."""
    fleet = Fleet(CHARGERS)
    minutes_us = iter(range(time.time_ns() // 1000 - MINUTE_US, 0, -MINUTE_US))
    end = time.monotonic() + SECONDS

    async def client(http: httpx.AsyncClient) -> int:
        inserted = 0
        while time.monotonic() < end:
            start_us = next(minutes_us)
            body = msgspec.json.encode(list(fleet.measured(start_us, start_us + MINUTE_US)))
            answer = await http.post("/v1/telemetry", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == httpx.codes.OK, answer.text
            inserted += answer.json()["inserted"]
        return inserted

    async with httpx.AsyncClient(base_url=base_url, timeout=60) as http:
        return sum(await asyncio.gather(*(client(http) for _ in range(CLIENTS))))


@pytest.mark.soak
async def test_a_minute_of_batches_of_1000_stays_below_250_mb(server_process: Process) -> None:
    inserted = await send_for_a_minute(server_process.base_url)
    peak = server_process.peak_memory_bytes()
    print(f"{inserted:,} readings in {SECONDS} s, peak memory {peak / 1e6:.0f} MB")  # noqa: T201
    assert inserted > 0
    assert peak < LIMIT_BYTES
