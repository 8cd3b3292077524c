"""The sessions that are not over, made anew as long as they may go on."""

from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.analytics.alerts.judged import judge_running
from app.analytics.alerts.tables import Connection, hour_of, start_of_hour
from app.analytics.sessions import tables
from app.analytics.sessions.parts import replace_judged
from app.database import snapshot
from app.settings import Settings
from app.telemetry.instant import MAX_AHEAD

# Those of 5,000 vehicles that charge took 2.5 s of this process's CPU.
RUNNING_PERIOD = timedelta(minutes=5)


async def make_running(
    reading: AsyncConnection, writing: Connection, over: int, as_of: datetime, settings: Settings
) -> None:
    """Makes the sessions anew of the hours that are not over, and tells which sessions have ended; not at each call."""
    last = await tables.fetch_as_of(writing)
    if last is not None and as_of - last < RUNNING_PERIOD:
        return
    touched = await tables.fetch_touched_since(writing, start_of_hour(over))
    vehicles, meters = ({device for stream, device in touched if stream == each} for each in ("vehicle", "meter"))
    hours = range(over, hour_of(as_of + MAX_AHEAD) + 1)
    since = start_of_hour(over - 1)
    charging = await tables.fetch_beside(writing, vehicles, meters, since)
    if vehicles:
        bounds = {"devices": [*vehicles], "range_from": since, "range_to": start_of_hour(hours.stop)}
        async with snapshot(reading):
            charging |= {vehicle_id for (vehicle_id,) in await reading.execute(_CHARGING, bounds)}
    if charging:
        for judged in await judge_running(reading, charging, hours, settings):
            await replace_judged(writing, judged, as_of, settings)
    await tables.tell_ended(writing, as_of)
    await tables.note_as_of(writing, as_of)


# The vehicles among :devices that took energy.
_CHARGING = text("""
    SELECT DISTINCT vehicle_id
    FROM vehicle_minute(:range_from, :range_to, CAST(:devices AS integer[]))
    WHERE dc_milliwh > 0
""")
