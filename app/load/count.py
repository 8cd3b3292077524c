"""The count of lost readings, made by asking the service how many readings it has of each device."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from app.errors import SetupError
from app.load.service import CONNECTIONS, Service

# TimescaleDB refreshes each minute, so a missing reading appears within two minutes; an MQTT consumer may lag.
_PATIENCE_S = 130
_PAUSE_S = 1


class Count(NamedTuple):
    """The run's readings in the service, the acknowledged ones that it lacks, and those of them that may still come."""

    stored: int
    lost: int
    unsettled: int


async def count_lost(
    service: Service,
    expected: Counter[str],
    since: datetime,
    committed_at: datetime | None,
    report: Callable[[int], None],
) -> Count | None:
    """Asks for each device until all its expected readings are there, or its answer covers everything committed.

    It gives up two minutes after the last progress, and returns None when the service is silent for as long.
    `report` is called with the number of devices that are settled.
    """
    stored: Counter[str] = Counter()
    unsettled = set(expected)
    is_answering = True

    async def ask(devices: list[str]) -> None:
        while devices:
            device = devices.pop()
            async with asyncio.timeout(_PATIENCE_S):
                stored[device], as_of = await service.stored(device, since)
            is_complete = as_of is not None and committed_at is not None and as_of > committed_at
            if is_complete or stored[device] >= expected[device]:
                unsettled.remove(device)
                report(len(expected) - len(unsettled))

    give_up_s, seen = time.monotonic() + _PATIENCE_S, 0
    while unsettled and is_answering and time.monotonic() < give_up_s:
        devices = list(unsettled)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(CONNECTIONS):
                    group.create_task(ask(devices))
        except* (TimeoutError, SetupError):
            is_answering = False
        if stored.total() > seen:
            give_up_s, seen = time.monotonic() + _PATIENCE_S, stored.total()
        if unsettled:
            await asyncio.sleep(_PAUSE_S)
    if not is_answering:
        return None
    missing = expected - stored
    return Count(stored.total(), missing.total(), sum(missing[device] for device in unsettled))
