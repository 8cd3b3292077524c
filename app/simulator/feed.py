"""Feeds a service from the simulated fleet: a day of history, then the readings as they arrive."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import httpx
import msgspec

from app.simulator.charging import DAY_US, HOUR_US
from app.simulator.devices import Reading
from app.simulator.display import show, show_examples, showing_progress
from app.simulator.fleet import Fleet

# Larger batches are stored no faster. Smaller ones make a large fleet look for late and repeated readings too often.
BATCH_READINGS = 10_000
# A charger has two devices, each of which reports every 34 to 108 s.
_READINGS_PER_CHARGER_HOUR = 120
# Readings that arrived shortly before the last stop may not have been sent; sent again, they are duplicates.
OVERLAP_US = 3 * HOUR_US


@contextmanager
def feeding(base_url: str, chargers: int, refresh: Callable[[], None]) -> Iterator[None]:
    """Feeds the service once it is ready: the last day, without what was sent before, then live, until the end.

    After the history it calls `refresh`, which must not raise, and prints some things to try.
    """
    feeder = Feeder(base_url, Fleet(chargers), refresh)
    thread = threading.Thread(target=feeder.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        feeder.stopped.set()
        thread.join(timeout=10)


class Feeder:
    """Sends a fleet's readings in the order of their arrival, until `stopped` is set."""

    def __init__(self, base_url: str, fleet: Fleet, refresh: Callable[[], None]) -> None:
        self.stopped = threading.Event()
        self._base_url = base_url
        self._client = httpx.Client(base_url=base_url, headers={"Content-Type": "application/json"}, timeout=30)
        self._fleet = fleet
        self._refresh = refresh

    def run(self) -> None:
        """Sends the history, then each second the readings that have arrived in it."""
        with self._client:
            try:
                self._map_vehicles()
                sent_until_us = _now_us()
                self._send_history(sent_until_us)
                if not self.stopped.is_set():
                    show("Refreshing the sums.")
                    self._refresh()
                    show_examples(self._ask, self._base_url, self._fleet)
                while not self.stopped.wait(1):
                    now_us = _now_us()
                    # The machine may have been asleep for days.
                    for _, readings in self._batches(max(sent_until_us, now_us - DAY_US), now_us):
                        self._post("/v1/telemetry", readings)
                    sent_until_us = now_us
            except httpx.HTTPStatusError as error:
                show(f"The simulated fleet has ended: {error.response.text}")

    def _map_vehicles(self) -> None:
        """Maps the vehicles that do not name their meter; a mapping made by a visitor stays."""
        for vehicle_id, meter_id in self._fleet.mappings():
            if self._ask(f"/v1/ingestion/mapping?vehicleId={vehicle_id}") == []:
                self._post("/v1/ingestion/mapping", {"vehicleId": vehicle_id, "meterId": meter_id})

    def _send_history(self, to_us: int) -> None:
        """Sends the part of the last day that the last start has not sent."""
        if (states := self._ask("/v1/analytics/meters/states")) is None:
            return
        from_us = max(self._sent_until_us(states) - OVERLAP_US, to_us - DAY_US)
        with showing_progress((to_us - from_us) / HOUR_US) as report:
            for hours, readings in self._batches(from_us, to_us):
                self._post("/v1/telemetry", readings)
                report(hours, len(readings))

    def _sent_until_us(self, states: list[dict[str, Any]]) -> int:
        """Returns the latest reading of the fleet's meters; 0 when one of them has never reported."""
        last_updated = {state["meterId"]: state["lastUpdated"] for state in states}
        meters = {charger.meter_id for charger in self._fleet.chargers}
        if not meters <= last_updated.keys():
            return 0
        newest = max(datetime.fromisoformat(last_updated[meter_id]) for meter_id in meters)
        return int(newest.timestamp() * 1_000_000)

    def _batches(self, from_us: int, to_us: int) -> Iterator[tuple[float, list[Reading]]]:
        """Yields the arrivals in [from_us, to_us), in batches, each with the hours that it spans, until stopped."""
        step_us = HOUR_US * BATCH_READINGS // (_READINGS_PER_CHARGER_HOUR * len(self._fleet.chargers))
        for start_us in range(from_us, to_us, step_us):
            end_us = min(start_us + step_us, to_us)
            readings = self._fleet.deliveries(start_us, end_us)
            if self.stopped.is_set():
                return
            if readings:
                yield (end_us - start_us) / HOUR_US, readings

    def _ask(self, path: str) -> Any:
        """Returns the answer; None when stopped before it came."""
        answer = self._request("GET", path)
        return None if answer is None else answer.raise_for_status().json()

    def _post(self, path: str, content: Any) -> None:
        answer = self._request("POST", path, msgspec.json.encode(content))
        if answer is not None:
            answer.raise_for_status()

    def _request(self, method: str, path: str, body: bytes | None = None) -> httpx.Response | None:
        """Asks as often as it takes and returns the service's answer; None when stopped before it came."""
        while not self.stopped.is_set():
            try:
                answer = self._client.request(method, path, content=body)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    return answer
            except httpx.TransportError:
                pass  # the service is starting or stopping
            self.stopped.wait(0.2)
        return None


def _now_us() -> int:
    return time.time_ns() // 1000
