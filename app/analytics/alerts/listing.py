"""The listing of alerts in answers."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import msgspec
from psycopg import AsyncConnection

from app.analytics.alerts.judge import Kind
from app.analytics.alerts.sentence import sentence_of
from app.analytics.efficiency.cost import cost
from app.csv_rows import stamp
from app.errors import InvalidParameter
from app.fleet.registry import refuse_unknown
from app.settings import Settings
from app.telemetry.reading import Stream

_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class AlertAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """An alert of the device `device_id`; `meter_ids` and `vehicle_ids` are all the devices that it is about."""

    id: str
    kind: Kind
    stream: Stream
    device_id: str
    meter_ids: list[str]
    vehicle_ids: list[str]
    opened_at: datetime
    closed_at: datetime | None
    text: str
    evidence: dict[str, float | int | str]


class Acknowledged(msgspec.Struct, frozen=True):
    """When somebody acknowledged an alert, who it was, and why."""

    at: datetime
    by: str
    reason: str


class Current(msgspec.Struct, frozen=True, rename="camel"):
    """The paired energies since an alert opened, until it closed or up to the last judged hour.

    Those of a frozen device are of the hours in which it was frozen. The ratio is null without AC energy, the cost
    where the settings name no price.
    """

    ac_kwh: float
    dc_kwh: float
    loss_kwh: float
    loss_cost: float | None
    efficiency_ratio: float | None


class ListedAlert(AlertAnswer, frozen=True, rename="camel"):
    """An alert as the listing answers it; `acknowledged` is null until somebody acknowledges it.

    `loss_to_date_kwh` is the loss of `current` and of the 24 hours before the opening, `loss_to_date_cost` what it
    costs. All are null for `no_data` and `implausible_energy`.
    """

    current: Current | None
    loss_to_date_kwh: float | None
    loss_to_date_cost: float | None
    acknowledged: Acknowledged | None


class AlertPage(msgspec.Struct, frozen=True, rename="camel"):
    """Alerts: open ones first, then those with the largest loss to date.

    Readings committed before `as_of` have been judged if their hour was over. Costs are in `currency`; both are null
    where the settings name no price.
    """

    as_of: datetime | None
    currency: str | None
    alerts: list[ListedAlert]


class AlertFilter(NamedTuple):
    """The choice of alerts; a member that is None excludes none.

    The alerts were open at some time in [start, end). Devices named in an alert's evidence count as its devices, also
    for `site`; `device_id` is the id of a vehicle or a meter.
    """

    is_open: bool | None = None
    kind: Kind | None = None
    vehicle_id: str | None = None
    meter_id: str | None = None
    device_id: str | None = None
    site: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    after: str | None = None
    limit: int = 100


async def fetch_alerts(
    connection: AsyncConnection[tuple[Any, ...]], only: AlertFilter, settings: Settings
) -> AlertPage:
    """Returns alerts of devices in service. Raises UnknownDevice, and InvalidParameter when `after` is not an id."""
    parameters = {**only._asdict(), **_position(only.after)}
    await refuse_unknown(connection, vehicle=only.vehicle_id, meter=only.meter_id, either=only.device_id)
    ((as_of,),) = await (await connection.execute("SELECT judged_as_of FROM installation")).fetchall()
    rows = await (await connection.execute(_ALERTS, parameters)).fetchall()
    return AlertPage(as_of, settings.currency, [_listed(settings.price_per_kwh, *row) for row in rows])


def _listed(
    price_per_kwh: float | None, acknowledged: dict[str, str] | None, ac: int, dc: int, loss: int, *alert: Any
) -> ListedAlert:
    answer = answer_of(*alert)
    since_cost = cost(ac - dc, price_per_kwh)
    current = Current(ac / 1_000_000, dc / 1_000_000, (ac - dc) / 1_000_000, since_cost, dc / ac if ac else None)
    has_energy = answer.kind not in (Kind.NO_DATA, Kind.IMPLAUSIBLE_ENERGY)
    return ListedAlert(
        **msgspec.structs.asdict(answer),
        current=current if has_energy else None,
        loss_to_date_kwh=loss / 1_000_000 if has_energy else None,
        loss_to_date_cost=cost(loss, price_per_kwh) if has_energy else None,
        acknowledged=msgspec.convert(acknowledged, Acknowledged | None),
    )


def answer_of(
    kind: str,
    stream: str,
    device_id: str,
    opened: datetime,
    closed: datetime | None,
    evidence: Mapping[str, Any],
    others: list[str],
) -> AlertAnswer:
    """Returns an alert's answer from its columns, its device's name and the names of the `others` in its evidence."""
    meters, vehicles = (others, [device_id]) if stream == Stream.VEHICLE else ([device_id], others)
    numbers = {name: value for name, value in evidence.items() if name != "others"}
    return AlertAnswer(
        id=f"{kind}/{stream}/{device_id}/{stamp(opened)}",
        kind=Kind(kind),
        stream=Stream(stream),
        device_id=device_id,
        meter_ids=meters,
        vehicle_ids=vehicles,
        opened_at=opened,
        closed_at=closed,
        text=sentence_of(Kind(kind), stream, device_id, ", ".join(others), closed, numbers),
        evidence=numbers,
    )


def key_of(alert_id: str) -> dict[str, Any] | None:
    """Returns `kind`, `stream`, `name` and `opened` of the alert with this id; None if it is no id of an alert."""
    kind, stream, name, opened = (alert_id.split("/") + [""] * 4)[:4]
    try:
        return {"kind": kind, "stream": stream, "name": name, "opened": msgspec.convert(opened, _Moment)}
    except msgspec.ValidationError:
        return None


def position_of(alert: ListedAlert) -> str:
    """Returns the place of an alert in the listing, for `after`; it stays when the alert moves or disappears."""
    loss = round(abs(alert.loss_to_date_kwh or 0) * 1_000_000)
    return f"{'open' if alert.closed_at is None else 'closed'}/{loss}/{alert.id}"


_POSITION = re.compile(r"(open|closed)/([0-9]{1,19})/(.*)", re.DOTALL)


def _position(after: str | None) -> dict[str, Any]:
    if after is None:
        return dict.fromkeys(f"after_{name}" for name in ("closed", "loss", "kind", "stream", "name", "opened"))
    found = _POSITION.fullmatch(after)
    key = key_of(found[3]) if found else None
    if found is None or key is None:
        raise InvalidParameter("after: Expected the value that a Link has.")
    key |= {"closed": found[1] == "closed", "loss": int(found[2])}
    return {f"after_{name}": value for name, value in key.items()}


# An alert also belongs to a vehicle, or a meter, that its evidence names at the other end.
# The LIMIT makes each lookup go by key, instead of joining all devices.
_ALERTS = """
    WITH page AS (
        SELECT alert.*, device.external_id
        FROM alert
        JOIN device ON device.stream = alert.stream AND device.id = alert.device_id
        WHERE device.in_service
            AND (%(is_open)s::boolean IS NULL OR (alert.closed IS NULL) = %(is_open)s)
            AND (%(kind)s::text IS NULL OR alert.kind = %(kind)s)
            AND (%(start)s::timestamptz IS NULL OR alert.closed IS NULL OR alert.closed > %(start)s)
            AND (%(end)s::timestamptz IS NULL OR alert.opened < %(end)s)
            AND (%(device_id)s::text IS NULL
                 OR device.external_id = %(device_id)s
                 OR alert.evidence -> 'others' @> to_jsonb(
                     (SELECT id FROM device AS other
                      WHERE other.stream <> alert.stream AND external_id = %(device_id)s)))
            AND (%(site)s::text IS NULL
                 OR device.site = %(site)s
                 OR EXISTS (SELECT FROM device AS other
                            WHERE other.stream <> alert.stream AND other.site = %(site)s
                                AND alert.evidence -> 'others' @> to_jsonb(other.id)))
            AND (%(vehicle_id)s::text IS NULL
                 OR (alert.stream = 'vehicle' AND device.external_id = %(vehicle_id)s)
                 OR (alert.stream = 'meter' AND alert.evidence -> 'others' @> to_jsonb(
                     (SELECT id FROM vehicle WHERE external_id = %(vehicle_id)s))))
            AND (%(meter_id)s::text IS NULL
                 OR (alert.stream = 'meter' AND device.external_id = %(meter_id)s)
                 OR (alert.stream = 'vehicle' AND alert.evidence -> 'others' @> to_jsonb(
                     (SELECT id FROM meter WHERE external_id = %(meter_id)s))))
            AND (%(after_opened)s::timestamptz IS NULL
                 OR (alert.closed IS NOT NULL, -abs(alert.loss_milliwh)) > (%(after_closed)s, -%(after_loss)s::numeric)
                 OR ((alert.closed IS NOT NULL, -abs(alert.loss_milliwh)) = (%(after_closed)s, -%(after_loss)s::numeric)
                     AND (alert.opened < %(after_opened)s
                          OR (alert.opened = %(after_opened)s
                              AND (alert.kind, alert.stream, device.external_id)
                                  > (%(after_kind)s, %(after_stream)s, %(after_name)s)))))
        ORDER BY alert.closed IS NOT NULL, abs(alert.loss_milliwh) DESC, alert.opened DESC,
                 alert.kind, alert.stream, device.external_id
        LIMIT %(limit)s
    )
    SELECT acknowledged, ac_milliwh, dc_milliwh, loss_milliwh, kind, stream, external_id, opened, closed, evidence,
           ARRAY(SELECT named.external_id
                 FROM jsonb_array_elements(evidence -> 'others') AS other
                 CROSS JOIN LATERAL (
                     SELECT external_id FROM device WHERE device.stream <> page.stream AND id = other::int LIMIT 1
                 ) AS named
                 ORDER BY 1)
    FROM page
    ORDER BY closed IS NOT NULL, abs(loss_milliwh) DESC, opened DESC, kind, stream, external_id
"""
