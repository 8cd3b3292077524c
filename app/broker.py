"""Connections to the MQTT broker: paho's client, driven by asyncio in one thread.

With a single thread, an acknowledgement never slips from a lost connection into the next one, where its packet
identifier may stand for a message that is not stored.
"""

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import structlog
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.exception import MQTTException
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from app.errors import SetupError
from app.loops import backoff_seconds
from app.settings import Settings

PORTS = {"mqtt": 1883, "mqtts": 8883}
KEEPALIVE_SECONDS = 60
# This is two groups of the writer: the next one arrives while the database works on the one before.
RECEIVE_MAXIMUM = 40_000
# Only the operator ends a session. A reading that is too old when it is taken goes to quarantine, as over HTTP.
NEVER_EXPIRES = 0xFFFFFFFF
LONGEST_PAUSE_SECONDS = 30
DISCONNECT_SECONDS = 5
# After this many packets, the rest of the event loop has its turn.
PACKETS_AT_ONCE = 100
# While nothing is read, neither are answers to pings; after two without an answer paho takes the broker for dead.
LONGEST_HOLD_SECONDS = KEEPALIVE_SECONDS / 2

_log = structlog.get_logger()


class Message(NamedTuple):
    """A published message. An acknowledgement names `connection` and `mid`, which is 0 when none is expected."""

    connection: int
    mid: int
    topic: str
    content_type: str | None
    payload: bytes


class _Client(Client):
    """paho's client, but a message that it cannot read does not end the connection, or it would come back for ever.

    The broker passes on things that MQTT allows and paho refuses, such as U+FEFF in a property.
    """

    def _handle_publish(self) -> MQTTErrorCode:
        try:
            return super()._handle_publish()
        except (MQTTException, ValueError, IndexError):
            packet, qos = bytes(self._in_packet["packet"]), self._in_packet["command"] >> 1 & 3
            end = 2 + int.from_bytes(packet[:2])
            start = end + 2 if qos else end
            message = MQTTMessage(int.from_bytes(packet[end:start]), packet[2:end])
            message.payload = packet[start:]
            self._handle_on_message(message)
            return MQTTErrorCode.MQTT_ERR_SUCCESS


def create_client(settings: Settings, client_id: str, *, persistent: bool) -> Client:
    """Returns a client of the broker, which `reconnect()` connects. Raises SetupError for settings that cannot work.

    A persistent client resumes its session and acknowledges by hand.
    """
    if settings.mqtt_url is None:
        raise SetupError("WATTLINE_MQTT_URL is not set: it names the broker, such as mqtt://user@host:1883.")
    url = urlsplit(settings.mqtt_url)
    client = _Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=persistent)
    if url.username:
        client.username_pw_set(unquote(url.username), unquote(url.password or "") or settings.mqtt_password)
    if url.scheme == "mqtts":
        client.tls_set_context(_tls(settings))
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    if persistent:
        properties.SessionExpiryInterval = NEVER_EXPIRES
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
    client.connect_async(
        url.hostname or "",
        url.port or PORTS[url.scheme],
        KEEPALIVE_SECONDS,
        clean_start=not persistent,
        properties=properties,
    )
    return client


def shown_address(settings: Settings) -> str:
    """Returns the address of the broker, without user and password."""
    url = urlsplit(settings.mqtt_url or "")
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}"


def _tls(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.mqtt_ca_file)
        if settings.mqtt_cert_file:
            context.load_cert_chain(settings.mqtt_cert_file, settings.mqtt_key_file)
    except OSError as error:  # ssl.SSLError is one
        raise SetupError(
            "WATTLINE_MQTT_CA_FILE, WATTLINE_MQTT_CERT_FILE or WATTLINE_MQTT_KEY_FILE cannot be used: "
            f"{error.strerror or error}."
        ) from None
    return context


class Session:
    """A session that the broker keeps while nobody is connected to it; `on_message` takes the broker's messages.

    `subscribed` is True while all filters are subscribed on the current connection.
    """

    def __init__(self, settings: Settings, filters: Iterable[str], on_message: Callable[[Message], None]) -> None:
        self.subscribed = False
        self._address = shown_address(settings)
        self._client_id = settings.mqtt_client_id
        self._filters = list(filters)
        self._on_message = on_message
        self._connection = 0
        self._received = 0
        self._fd = -1
        self._full = False
        self._full_since = 0.0
        self._session_present = False
        self._closing = False
        self._wake = asyncio.Event()
        self._reason = ""
        self._pauses = 0
        self._client = create_client(settings, settings.mqtt_client_id, persistent=True)
        self._client.on_connect = self._connected
        self._client.on_subscribe = self._subscribed
        self._client.on_message = self._take
        self._client.on_disconnect = self._disconnected
        self._client.on_socket_close = self._forget

    async def run(self) -> None:
        """Connects, and reconnects after growing pauses, until `close()`."""
        while not self._closing:
            self._reason = ""
            try:
                await asyncio.to_thread(self._client.reconnect)
                await self._hold()
            except (OSError, ValueError) as error:  # no such host, no route, an invalid certificate
                self._reason = str(error)
            self._connection += 1
            if self._full:
                await self._wait_for_room()
            elif not self._closing:
                await self._pause()

    def close(self) -> None:
        """Takes no more messages: `run()` disconnects in good order and returns. The session stays at the broker."""
        self._closing = True
        self._wake.set()

    def acknowledge(self, messages: Iterable[Message]) -> None:
        """Acknowledges messages in the order in which they came, as MQTT demands, but none of an earlier connection."""
        for message in messages:
            if message.mid and message.connection == self._connection:
                self._client.ack(message.mid, qos=1)
        self._write()

    def hold_back(self) -> None:
        """Stops reading until `go_on()`, so that the broker waits; after a while the connection is closed."""
        if not self._full:
            self._full = True
            self._full_since = time.monotonic()

    def go_on(self) -> None:
        if self._full:
            self._full = False
            self._wake.set()
            if self._fd >= 0:
                asyncio.get_running_loop().add_reader(self._fd, self._read)
                self._read()

    async def _hold(self) -> None:
        if (sock := self._client.socket()) is None:
            return
        self._fd = sock.fileno()
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        while self._fd >= 0 and not self._closing and not self._held_for_long():
            await self._sleep(1)
            self._client.loop_misc()
            self._write()
        self._client.disconnect()
        if self._fd >= 0:
            self._write()
            await self._sleep(DISCONNECT_SECONDS)

    def _held_for_long(self) -> bool:
        return self._full and time.monotonic() > self._full_since + LONGEST_HOLD_SECONDS

    async def _sleep(self, seconds: float) -> None:
        self._wake.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    async def _wait_for_room(self) -> None:
        _log.warning("mqtt_held_back", broker=self._address)
        while self._full and not self._closing:
            await self._sleep(1)

    async def _pause(self) -> None:
        # The pause is random, so that many consumers do not come back at the same moment.
        longest = backoff_seconds(self._pauses, first=1, longest=LONGEST_PAUSE_SECONDS)
        seconds = longest * random.uniform(0.5, 1)  # noqa: S311
        self._pauses += 1
        _log.warning("mqtt_away", broker=self._address, reason=self._reason, retry_seconds=round(seconds, 1))
        await self._sleep(seconds)

    def _read(self) -> None:
        """Reads all packets that have arrived; paho reads one at a time."""
        for _ in range(PACKETS_AT_ONCE):
            received = self._received
            self._client.loop_read()
            if self._fd < 0:
                return
            if self._full and self._client.is_connected():
                asyncio.get_running_loop().remove_reader(self._fd)
                break
            if self._received == received and not self._buffered():
                break
        else:
            if self._buffered():
                asyncio.get_running_loop().call_soon(self._read)
        self._write()

    def _buffered(self) -> bool:
        """Returns True when TLS holds bytes read from the socket already, of which the event loop does not know."""
        sock = self._client.socket()
        return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

    def _write(self) -> None:
        """Writes as much as the socket takes, and the rest once it takes more."""
        if self._fd >= 0 and self._client.want_write():
            self._client.loop_write()
        if self._fd >= 0:
            loop = asyncio.get_running_loop()
            if self._client.want_write():
                loop.add_writer(self._fd, self._write)
            else:
                loop.remove_writer(self._fd)

    def _take(self, _client: Client, _: Any, message: MQTTMessage) -> None:
        self._received += 1
        content_type = getattr(message.properties, "ContentType", None)
        self._on_message(Message(self._connection, message.mid, message.topic, content_type, bytes(message.payload)))

    def _connected(
        self, client: Client, _: Any, flags: ConnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._reason = str(reason)
            return
        self._pauses = 0
        self._session_present = flags.session_present
        # A retained reading comes once, not with each connection.
        options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        client.subscribe([(pattern, options) for pattern in self._filters])

    def _subscribed(
        self, _client: Client, _: Any, _mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        for pattern, reason in zip(self._filters, reasons, strict=False):
            if reason.is_failure:
                _log.error("mqtt_subscription_refused", broker=self._address, topic=pattern, reason=str(reason))
        self.subscribed = not any(reason.is_failure for reason in reasons)
        # The broker answers in order: from here on it keeps what is published.
        _log.info("mqtt_connected", broker=self._address, client=self._client_id, session_present=self._session_present)

    def _disconnected(
        self, _client: Client, _: Any, flags: DisconnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._reason = self._reason or str(reason)
        # Mosquitto 2.0.11 gives no reason when it throws out the older of two clients with one name.
        self._reason = self._reason or f"closed, as also when another client connects as {self._client_id!r}"
        self._wake.set()

    def _forget(self, _client: Client, _: Any, _socket: Any) -> None:
        if self._fd >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._fd)
            loop.remove_writer(self._fd)
            self._fd = -1
            self.subscribed = False
