"""Publishing to a broker over MQTT 5 with QoS 1; a batch is acknowledged with the PUBACK of its last message."""

import asyncio
from itertools import groupby
from types import TracebackType
from typing import Any, Self

import msgspec
from paho.mqtt.reasoncodes import ReasonCode

from app.broker import create_client, shown_address
from app.errors import SetupError
from app.load.service import Outcome
from app.load.source import device_of
from app.settings import Settings
from app.simulator.devices import Reading

_CONNECT_S = 10
_LONGEST_RECONNECT_S = 5


class Broker:
    """A connection to a broker. When it breaks, paho makes it anew and sends again what was not acknowledged."""

    def __init__(self, settings: Settings, run: str) -> None:
        """Raises SetupError for settings that cannot work."""
        self._address = shown_address(settings)
        self._run = run
        self._client = create_client(settings, run, persistent=False)
        self._client.reconnect_delay_set(max_delay=_LONGEST_RECONNECT_S)
        self._client.on_connect = self._on_connect
        self._client.on_publish = self._on_publish
        self._awaited: dict[int, asyncio.Future[str | None]] = {}

    async def __aenter__(self) -> Self:
        """Raises SetupError when the broker cannot be reached or refuses."""
        self._loop = asyncio.get_running_loop()
        self._connected: asyncio.Future[str | None] = self._loop.create_future()
        try:
            await asyncio.to_thread(self._client.reconnect)
            self._client.loop_start()
            failure = await asyncio.wait_for(self._connected, _CONNECT_S)
        except (OSError, ValueError) as error:
            failure = str(error) or type(error).__name__
        if failure is not None:
            self._client.loop_stop()
            raise SetupError(f"The broker at {self._address} cannot be used: {failure}. Another one: --broker.")
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    async def send(self, readings: list[Reading]) -> Outcome:
        """Publishes a single reading under its device's topic, several under one topic per stream."""
        ordered = sorted(enumerate(readings), key=lambda numbered: "vehicleId" in numbered[1])
        rejected: dict[int, str] = {}
        messages = []
        for is_vehicle, of_stream in groupby(ordered, key=lambda numbered: "vehicleId" in numbered[1]):
            numbers, batch = zip(*of_stream, strict=True)
            name = self._run if len(batch) > 1 else device_of(batch[0]).partition("/")[2]
            topic = f"telemetry/{'vehicle' if is_vehicle else 'meter'}/{name}"
            payload = msgspec.json.encode(batch if len(batch) > 1 else batch[0])
            messages.append((numbers, self._publish(topic, payload)))
        for numbers, acknowledged in messages:
            if (reason := await acknowledged) is not None:
                rejected |= dict.fromkeys(numbers, reason)
        return Outcome(rejected)

    def _publish(self, topic: str, payload: bytes) -> asyncio.Future[str | None]:
        message = self._client.publish(topic, payload, qos=1)
        # The acknowledgement comes through the event loop, so never before this line.
        acknowledged = self._awaited[message.mid] = self._loop.create_future()
        return acknowledged

    # paho calls these in its own thread.

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        self._loop.call_soon_threadsafe(self._settle, self._connected, str(reason) if reason.is_failure else None)

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        # A message that matches no subscription is dropped, which is a success only for the broker.
        rejected = reason.is_failure or reason.getName() == "No matching subscribers"
        self._loop.call_soon_threadsafe(self._acknowledge, mid, str(reason) if rejected else None)

    def _acknowledge(self, mid: int, failure: str | None) -> None:
        self._settle(self._awaited.pop(mid), failure)

    @staticmethod
    def _settle(future: asyncio.Future[str | None], failure: str | None) -> None:
        if not future.done():  # it was given up, or the connection was made anew
            future.set_result(failure)
