"""Implausible energy: the cases from the field, in any order, with limits of their own."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.fixtures.alerts import judge_all
from tests.fixtures.sending import Reading, meter, send, vehicle

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
ALERTS = "/v1/analytics/alerts?kind=implausible_energy"


def start() -> datetime:
    """Returns 19 minutes past an hour that is over, as are the two that follow."""
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 4 * HOUR + 19 * MINUTE


def charge(ac: float, dc: float, *, register: float = 0, name: str = "") -> Iterator[Reading]:
    """Yields two hours in which a meter and a vehicle send this energy each minute, or totals that grow by it."""
    at = start()
    for n in range(121):
        for_ac, for_dc = (register + n * ac, register + n * dc) if register else (ac, dc)
        yield meter(at + n * MINUTE, for_ac, meter_id=f"{name}M")
        yield vehicle(at + n * MINUTE, for_dc, vehicle_id=f"{name}V", meterId=f"{name}M")


async def told(client: httpx.AsyncClient) -> dict[str, Any]:
    """Returns the alerts by device."""
    alerts = (await client.get(ALERTS)).json()["alerts"]
    assert len({one["deviceId"] for one in alerts}) == len(alerts)
    return {one["deviceId"]: one for one in alerts}


async def test_totals_look_like_a_register(database_url: str, client: httpx.AsyncClient) -> None:
    await send(client, [*charge(0.12, 0.108, register=150)])
    await judge_all(database_url)
    alerts = await told(client)
    assert alerts.keys() == {"M", "V"}
    evidence = alerts["M"]["evidence"]
    assert (evidence["readings"], evidence["limitKw"], evidence["looksLike"]) == (120, 1000, "register")
    assert evidence["acKwh"] == pytest.approx(sum(150 + 0.12 * n for n in range(1, 121)))
    at = start()
    assert [datetime.fromisoformat(evidence[name]) for name in ("from", "to")] == [at + MINUTE, at + 120 * MINUTE]
    assert alerts["V"]["evidence"]["dcKwh"] == pytest.approx(sum(150 + 0.108 * n for n in range(1, 121)))
    assert datetime.fromisoformat(alerts["M"]["openedAt"]) == at + 41 * MINUTE
    assert (alerts["M"]["current"], alerts["M"]["lossToDateKwh"], alerts["M"]["vehicleIds"]) == (None, None, [])
    assert alerts["M"]["text"] == (
        "M sent 120 readings with 18,871.20 kWh, which would take more than its limit of 1000 kW: it looks like a "
        "register, the total of a meter, sent as the energy since the previous reading."
    )
