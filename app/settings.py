"""Every setting of Wattline with its unit, default and reason. They are read once, from the environment."""

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, get_type_hints
from urllib.parse import urlsplit

import msgspec

from app.errors import SetupError


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings in force. A field is the environment variable WATTLINE_<FIELD>; `database_url` is DATABASE_URL."""

    #: Without it, Wattline runs its own PostgreSQL under `data_dir`.
    database_url: str | None = None
    #: Where the embedded PostgreSQL keeps its data.
    data_dir: Path = Path(".wattline")
    #: The `bin` directory of the PostgreSQL 16-18 to run, if Wattline should not search for one.
    pg_bin: Path | None = None
    #: Applies when the database is first migrated; `auto` is TimescaleDB Community if the server has it.
    engine: Literal["auto", "timescale", "plain"] = "auto"
    #: There are no tokens yet, so any address but loopback needs an explicit `off`.
    auth: Literal["on", "off"] = "on"
    #: The names by which clients reach the service, besides `localhost` and IP addresses: `wattline,wattline.example`.
    #: A web page may make a name of its own lead here, and must get nothing by it.
    hosts: str | None = None
    #: `info` logs a line for each request; `warning` only for those that failed.
    log_level: Literal["info", "warning", "error"] = "info"
    #: Connections for answers; the writer and the background loops have their own.
    pool_max_size: int = 8
    #: Readings that may wait for the writer, 200 bytes each; a batch beyond them is answered with 503.
    queue_max_readings: int = 200_000
    #: Connections of clients at once, 25 kB each; further ones wait. A process with few file descriptors takes fewer.
    max_connections: int = 4_000
    #: An idle connection is ended after this time: gateways that send each minute keep theirs. It is also the time in
    #: which the head of a request must arrive.
    keep_alive_seconds: int = 75
    #: The broker: `mqtt://user@host:1883`, or `mqtts://` for TLS; a password in it must be URL-escaped.
    mqtt_url: str | None = None
    #: The password of the user in `mqtt_url`. It needs no escaping here; without a user, it is an error.
    mqtt_password: str | None = None
    #: The broker keeps the session under this name, so it must not change. No two consumers may have the same name.
    mqtt_client_id: str = "wattline"
    #: Consumers of one group divide the messages among them; without a group, each gets all messages.
    mqtt_share_group: str | None = None
    #: Topics of meter readings. The level `{id}` names the device of readings without id; else a final `#` or `+` does.
    mqtt_meter_topic: str = "telemetry/meter/#"
    #: Topics of vehicle readings, likewise.
    mqtt_vehicle_topic: str = "telemetry/vehicle/#"
    #: Authorities to trust for the broker's certificate; without it, those of the system. For `mqtts://` only.
    mqtt_ca_file: Path | None = None
    #: The certificate with which this client identifies itself to the broker, for `mqtts://` only.
    mqtt_cert_file: Path | None = None
    #: The key of `mqtt_cert_file`.
    mqtt_key_file: Path | None = None
    #: New devices that readings and mappings may register within an hour: twice a fleet of 10,000, so that it starts at
    #: once, but a typo or a hostile client does not fill the registry. `seed` and `redrive` have no limit.
    new_devices_per_hour: int = 20_000
    #: Two readings at most this far apart cover the minutes between them. Devices may report every two minutes only, on
    #: jittered clocks: below 3, the efficiency of such a device is wrong by half.
    pairing_gap_minutes: int = 5
    #: An efficiency below this limit is reported as low: a charger's losses are 10 to 15 %.
    low_efficiency: float = 0.85
    #: The power in kW beyond which a reading's energy is implausible; `wattline device limit` sets one of a device's
    #: own. Chargers of cars have less than half of it, and a total in place of a difference soon has more.
    max_power_kw: float = 1000
    #: What a kWh of AC costs, so that losses are told in money too. It is today's price, also for energy of last year.
    price_per_kwh: float | None = None
    #: The currency of `price_per_kwh`, as a code of ISO 4217.
    currency: str | None = None
    #: A vehicle that takes this power in kW or more charges: with less, it only keeps warm.
    session_min_kw: float = 0.2
    #: A longer pause divides a charge into two sessions: a limited grid makes pauses of some minutes.
    session_pause_minutes: int = 15
    #: Each transition of an alert is POSTed to this URL: `https://host/path`.
    webhook_url: str | None = None
    #: The key that signs these requests: `whsec_` and 24 to 64 bytes as Base64. Whoever has it can pose as Wattline.
    webhook_secret: str | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Reads the variables that are set. Raises SetupError for an unknown WATTLINE_ name or a bad value."""
        names = {variable_of(field): field for field in cls.__struct_fields__}
        if unknown := sorted(name for name in environ if name.startswith("WATTLINE_") and name not in names):
            raise SetupError(f"{unknown[0]} is not a setting of Wattline. Known: {', '.join(sorted(names))}.")
        types = get_type_hints(cls)
        given: dict[str, Any] = {
            field: _parse(name, environ[name], types[field]) for name, field in names.items() if environ.get(name)
        }
        return cls(**given)

    def recorded(self) -> dict[str, float]:
        """Returns the settings that change what answers mean. The database records them for all its processes."""
        names = "pairing_gap_minutes", "low_efficiency", "max_power_kw", "session_min_kw", "session_pause_minutes"
        return {field: getattr(self, field) for field in names}

    def __post_init__(self) -> None:
        for field, low, high in (
            ("pool_max_size", 1, 1_000),
            ("queue_max_readings", 50_000, 10_000_000),
            ("max_connections", 100, 100_000),
            ("keep_alive_seconds", 1, 3_600),
            ("new_devices_per_hour", 0, 10_000_000),
            ("pairing_gap_minutes", 3, 60),
            ("low_efficiency", 0, 1),
            ("max_power_kw", 1, 1_000_000),
            ("price_per_kwh", 0, 1_000_000),
            ("session_min_kw", 0.05, 100),
            ("session_pause_minutes", 1, 60),
        ):
            value = getattr(self, field)
            if value is not None and not low <= value <= high:
                raise SetupError(f"{variable_of(field)} is {value}; it must lie between {low} and {high}.")
        for field, fits, expected in _FORMS:
            value = getattr(self, field)
            if value is not None and not fits(value):
                # The value is not shown, as a URL may hold a password.
                raise SetupError(f"{variable_of(field)} cannot be used; it must be {expected}.")
        for field, other, why in (
            ("mqtt_key_file", "mqtt_cert_file", "to which the key belongs"),
            ("webhook_url", "webhook_secret", "which signs the requests"),
            ("price_per_kwh", "currency", "in which the price is told"),
            ("currency", "price_per_kwh", "which is told in it"),
        ):
            if getattr(self, field) is not None and getattr(self, other) is None:
                raise SetupError(f"{variable_of(field)} is set without {variable_of(other)}, {why}.")
        broker = urlsplit(self.mqtt_url or "mqtts://user@any")
        for field in ("mqtt_ca_file", "mqtt_cert_file"):
            if getattr(self, field) and broker.scheme != "mqtts":
                raise SetupError(
                    f"{variable_of(field)} is set, but the broker's URL is not mqtts://: nothing is encrypted."
                )
        if self.mqtt_password and not broker.username:
            raise SetupError(
                "WATTLINE_MQTT_PASSWORD is set, but the broker's URL names no user: mqtt://user@host:1883."
            )


#: The form of a broker's URL, as messages state it.
MQTT_URL = "a URL such as mqtt://user@host:1883 or mqtts://user@host:8883; a password in it is percent-encoded"

#: The level of a topic that names the device.
ID_LEVEL = "{id}"

_HOST = r"\s*[\w-]+(\.[\w-]+)*\.?\s*"
_HOSTS = re.compile(f"{_HOST}(,{_HOST})*", re.ASCII)
_TOPIC = re.compile(
    r"(?!\$)(?!.*{id}.*{id})(([^/+#{}\0]*|\+|{id})/)*([^/+#{}\0]+|\+|{id}|#)".replace("{id}", re.escape(ID_LEVEL))
)
_TOPIC_FORM = "a topic filter in which one level may be {id}, the device's, such as"


def is_mqtt_url(url: str) -> bool:
    """Returns whether a broker can have this URL."""
    try:
        parts = urlsplit(url)
        # If a password has '/', '?' or '#', its beginning would be taken for the port, and shown.
        return (
            parts.scheme in ("mqtt", "mqtts")
            and bool(parts.hostname)
            and parts.port != 0
            and parts[2:] in (("", "", ""), ("/", "", ""))
            and bool(parts.username or not parts.password)
        )
    except ValueError:
        return False


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(
            parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and re.fullmatch(r"[!-~]+", url)
        )
    except ValueError:
        return False


def _is_secret(secret: str) -> bool:
    try:
        return secret.startswith("whsec_") and 24 <= len(b64decode(secret[6:], validate=True)) <= 64
    except ValueError:
        return False


_FORMS: tuple[tuple[str, Callable[[str], object], str], ...] = (
    ("hosts", _HOSTS.fullmatch, "names without ports, separated by commas, such as wattline,wattline.example"),
    ("mqtt_url", is_mqtt_url, MQTT_URL),
    ("mqtt_client_id", re.compile(r"\S{1,128}").fullmatch, "1 to 128 characters without spaces"),
    ("mqtt_share_group", re.compile(r"[^/+#\s\0]+").fullmatch, "a name without '/', '+', '#' and spaces"),
    ("mqtt_meter_topic", _TOPIC.fullmatch, f"{_TOPIC_FORM} telemetry/meter/# or telemetry/meter/+/{{id}}/#"),
    ("mqtt_vehicle_topic", _TOPIC.fullmatch, f"{_TOPIC_FORM} telemetry/vehicle/# or vehicles/{{id}}/energy"),
    ("currency", re.compile("[A-Z]{3}").fullmatch, "a code of ISO 4217, such as EUR"),
    ("webhook_url", _is_http_url, "a URL such as https://host/path"),
    ("webhook_secret", _is_secret, "'whsec_' and 24 to 64 bytes as Base64"),
)


def variable_of(field: str) -> str:
    """Returns the environment variable that sets a field."""
    return "DATABASE_URL" if field == "database_url" else f"WATTLINE_{field.upper()}"


_KINDS = {int: "a whole number", float: "a number", Path: "a path", str: "text"}


def _parse(name: str, value: str, kind: object) -> object:
    if isinstance(kind, UnionType):
        kind = kind.__args__[0]  # the other one is None, which only the absence of the variable means
    try:
        return msgspec.convert(value, kind, strict=False, dec_hook=lambda to, text: to(text))
    except msgspec.ValidationError:
        options = getattr(kind, "__args__", ())
        expected = _KINDS.get(kind) or "one of " + ", ".join(map(str, options))  # type: ignore[call-overload]
        raise SetupError(f"{name} is {value!r}; it must be {expected}.") from None
