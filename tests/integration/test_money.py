"""Where the settings name a price, each loss also stands there as what it costs."""

import csv
from io import StringIO
from typing import Any

import httpx
import pytest

from app.settings import Settings
from tests.fixtures.alerts import judge_all
from tests.fixtures.commands import command
from tests.fixtures.readings import midnight, store
from tests.fixtures.service import service
from tests.integration.test_alerts import HOUR, session

DAY = midnight(2)
HOURS = {"from": DAY.isoformat(), "to": (DAY + 24 * HOUR).isoformat()}
PRICE = 0.25


async def answers(client: httpx.AsyncClient) -> tuple[Any, Any, Any]:
    performance = await client.get("/v1/analytics/performance/V", params=HOURS)
    ranking = await client.get("/v1/analytics/efficiency", params=HOURS)
    alerts = await client.get("/v1/analytics/alerts")
    return performance.json(), ranking.json(), alerts.json()


def losses(performance: Any, ranking: Any, alerts: Any) -> list[tuple[float, float | None]]:
    """Returns each loss with its cost."""
    (one,) = alerts["alerts"]
    (ranked,) = ranking["ranking"]
    told = [(one["lossToDateKwh"], one["lossToDateCost"]), (performance["energyLossKwh"], performance["lossCost"])]
    return told + [(each["lossKwh"], each["lossCost"]) for each in (ranked, ranking["totals"], one["current"])]


async def test_each_loss_is_told_in_money_where_a_price_is_set(database_url: str) -> None:
    await store(database_url, *session(DAY + 10 * HOUR, 300, "V", efficiency=0.7))
    await judge_all(database_url)
    async with service(Settings(database_url=database_url)) as client:
        without = await answers(client)
    priced = Settings(database_url=database_url, price_per_kwh=PRICE, currency="EUR")
    async with service(priced) as client:
        told = await answers(client)
        headers = {"Accept": "text/csv"}
        of_ranking = await client.get("/v1/analytics/efficiency", params=HOURS, headers=headers)
        of_alerts = await client.get("/v1/analytics/alerts", headers=headers)

    assert [one["currency"] for one in without] == [None] * 3
    assert [one["currency"] for one in told] == ["EUR"] * 3
    assert {cost for _, cost in losses(*without)} == {None}
    for (kwh, cost), (same_kwh, _) in zip(losses(*told), losses(*without), strict=True):
        assert kwh == same_kwh > 0
        assert cost == pytest.approx(PRICE * kwh)

    (row,) = csv.DictReader(StringIO(of_ranking.text))
    assert float(row["lossCost"]) == told[1]["ranking"][0]["lossCost"]
    (row,) = csv.DictReader(StringIO(of_alerts.text))
    assert float(row["lossToDateCost"]) == told[2]["alerts"][0]["lossToDateCost"]
    assert float(row["currentLossCost"]) == told[2]["alerts"][0]["current"]["lossCost"]
    assert (of_ranking.headers["Wattline-Currency"], of_alerts.headers["Wattline-Currency"]) == ("EUR", "EUR")


async def test_the_list_of_alerts_on_the_command_line_has_a_column_of_money(database_url: str) -> None:
    await store(database_url, *session(DAY + 10 * HOUR, 300, "V", efficiency=0.7))
    await judge_all(database_url)
    plain = command("alerts", "list", DATABASE_URL=database_url)
    assert "in EUR" not in plain.stdout
    price = {"WATTLINE_PRICE_PER_KWH": "0.25", "WATTLINE_CURRENCY": "EUR"}
    priced = command("alerts", "list", DATABASE_URL=database_url, **price)
    head, row, _ = priced.stdout.splitlines()
    at = head.index("in EUR")
    kwh = float(row[head.index("kWh lost to date") :].split()[0])
    assert float(row[at:].split()[0]) == pytest.approx(PRICE * kwh, abs=0.01)
