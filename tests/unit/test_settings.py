"""The settings that each environment gives, and the messages for wrong ones."""

from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from app.errors import SetupError
from app.settings import Settings, variable_of


def test_without_variables_the_defaults_hold() -> None:
    settings = Settings.from_environ({"PATH": "/bin", "PGHOST": "elsewhere"})
    assert settings == Settings()
    assert (settings.database_url, settings.data_dir, settings.pg_bin) == (None, Path(".wattline"), None)
    assert (settings.engine, settings.auth, settings.log_level) == ("auto", "on", "info")
    assert (settings.pool_max_size, settings.queue_max_readings) == (8, 200_000)
    assert (settings.pairing_gap_minutes, settings.low_efficiency) == (5, 0.85)


@pytest.mark.parametrize(
    ("variable", "value", "field", "parsed"),
    [
        ("DATABASE_URL", "postgresql:///wattline", "database_url", "postgresql:///wattline"),
        ("WATTLINE_DATA_DIR", "/srv/wattline data", "data_dir", Path("/srv/wattline data")),
        ("WATTLINE_PG_BIN", "/opt/pg/bin", "pg_bin", Path("/opt/pg/bin")),
        ("WATTLINE_ENGINE", "plain", "engine", "plain"),
        ("WATTLINE_ENGINE", "timescale", "engine", "timescale"),
        ("WATTLINE_AUTH", "off", "auth", "off"),
        ("WATTLINE_LOG_LEVEL", "error", "log_level", "error"),
        ("WATTLINE_POOL_MAX_SIZE", "1", "pool_max_size", 1),
        ("WATTLINE_POOL_MAX_SIZE", "1000", "pool_max_size", 1000),
        ("WATTLINE_QUEUE_MAX_READINGS", "50000", "queue_max_readings", 50_000),
        ("WATTLINE_PAIRING_GAP_MINUTES", "60", "pairing_gap_minutes", 60),
        ("WATTLINE_LOW_EFFICIENCY", "0.9", "low_efficiency", 0.9),
        ("WATTLINE_LOW_EFFICIENCY", "1", "low_efficiency", 1.0),
        # Compose passes a variable that is not set as an empty one.
        ("DATABASE_URL", "", "database_url", None),
        ("WATTLINE_AUTH", "", "auth", "on"),
        ("WATTLINE_POOL_MAX_SIZE", "", "pool_max_size", 8),
    ],
)
def test_a_good_value_is_taken(variable: str, value: str, field: str, parsed: Any) -> None:
    taken = getattr(Settings.from_environ({variable: value}), field)
    assert taken == parsed
    assert type(taken) is type(parsed)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("WATTLINE_ENGINE", "oracle", "one of auto, timescale, plain"),
        ("WATTLINE_ENGINE", "Plain", "one of auto, timescale, plain"),
        ("WATTLINE_AUTH", "false", "one of on, off"),
        ("WATTLINE_LOG_LEVEL", "debug", "one of info, warning, error"),
        ("WATTLINE_POOL_MAX_SIZE", "many", "a whole number"),
        ("WATTLINE_POOL_MAX_SIZE", "1.5", "a whole number"),
        ("WATTLINE_POOL_MAX_SIZE", "null", "a whole number"),
        ("WATTLINE_QUEUE_MAX_READINGS", "200k", "a whole number"),
        ("WATTLINE_PAIRING_GAP_MINUTES", "5m", "a whole number"),
        ("WATTLINE_LOW_EFFICIENCY", "85%", "a number"),
        ("WATTLINE_LOW_EFFICIENCY", "0,85", "a number"),
        ("WATTLINE_PRICE_PER_KWH", "0,30", "a number"),
        ("WATTLINE_PRICE_PER_KWH", "null", "a number"),
    ],
)
def test_a_value_of_another_type_is_told_key_value_and_type(variable: str, value: str, expected: str) -> None:
    with pytest.raises(SetupError) as refused:
        Settings.from_environ({variable: value})
    assert str(refused.value) == f"{variable} is {value!r}; it must be {expected}."


@pytest.mark.parametrize(
    ("variable", "value", "bounds"),
    [
        ("WATTLINE_POOL_MAX_SIZE", "0", "1 and 1000"),
        ("WATTLINE_POOL_MAX_SIZE", "1001", "1 and 1000"),
        ("WATTLINE_POOL_MAX_SIZE", "-8", "1 and 1000"),
        ("WATTLINE_QUEUE_MAX_READINGS", "49999", "50000 and 10000000"),
        ("WATTLINE_PAIRING_GAP_MINUTES", "2", "3 and 60"),
        ("WATTLINE_PAIRING_GAP_MINUTES", "61", "3 and 60"),
        ("WATTLINE_LOW_EFFICIENCY", "-0.1", "0 and 1"),
        ("WATTLINE_LOW_EFFICIENCY", "1.1", "0 and 1"),
        ("WATTLINE_LOW_EFFICIENCY", "nan", "0 and 1"),
        ("WATTLINE_LOW_EFFICIENCY", "inf", "0 and 1"),
        ("WATTLINE_PRICE_PER_KWH", "-0.1", "0 and 1000000"),
        ("WATTLINE_PRICE_PER_KWH", "nan", "0 and 1000000"),
    ],
)
def test_a_value_out_of_range_is_told_the_range(variable: str, value: str, bounds: str) -> None:
    with pytest.raises(SetupError) as refused:
        Settings.from_environ({variable: value})
    assert str(refused.value) == f"{variable} is {value}; it must lie between {bounds}."


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(SetupError) as refused:
        Settings.from_environ({"WATTLINE_PORT": "8000", "WATTLINE_AUTH": "off"})
    sentence = str(refused.value)
    assert sentence.startswith("WATTLINE_PORT is not a setting of Wattline. Known: ")
    assert all(variable_of(field) in sentence for field in Settings.__struct_fields__)
    assert "\n" not in sentence


def test_a_price_and_its_currency_belong_together() -> None:
    priced = Settings.from_environ({"WATTLINE_PRICE_PER_KWH": "0.3", "WATTLINE_CURRENCY": "EUR"})
    assert (priced.price_per_kwh, priced.currency) == (0.3, "EUR")
    for alone in {"WATTLINE_PRICE_PER_KWH": "0"}, {"WATTLINE_CURRENCY": "EUR"}:
        with pytest.raises(SetupError, match="is set without"):
            Settings.from_environ(alone)
    for wrong in "eur", "€", "EURO":
        with pytest.raises(SetupError, match="WATTLINE_CURRENCY cannot be used; it must be a code of ISO 4217"):
            Settings.from_environ({"WATTLINE_PRICE_PER_KWH": "0.3", "WATTLINE_CURRENCY": wrong})


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Settings().auth = "off"  # type: ignore[misc]


def test_each_setting_has_its_reason_beside_it() -> None:
    source = Path("app/settings.py")
    lines = (Path(__file__).parents[2] / source).read_text(encoding="utf-8").splitlines()
    for field in Settings.__struct_fields__:
        at = next(n for n, line in enumerate(lines) if line.startswith(f"    {field}: "))
        assert lines[at - 1].startswith("    #: "), field


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WATTLINE_MQTT_URL", "host:1883"),
        ("WATTLINE_MQTT_URL", "http://user:secret@host"),
        ("WATTLINE_MQTT_URL", "mqtt://user:secret@"),
        ("WATTLINE_MQTT_URL", "mqtt://user:secret@host:port"),
        ("WATTLINE_MQTT_URL", "mqtt://user:secret@host:70000"),
        ("WATTLINE_MQTT_URL", "mqtt://user:secret@host/topic"),
        ("WATTLINE_MQTT_URL", "mqtt://user:12#secret@host"),
        ("WATTLINE_MQTT_URL", "mqtt://user:12?secret@host"),
        ("WATTLINE_MQTT_URL", "mqtt://:secret@host"),
        ("WATTLINE_MQTT_CLIENT_ID", "two words"),
        ("WATTLINE_MQTT_SHARE_GROUP", "a/b"),
        ("WATTLINE_MQTT_METER_TOPIC", "telemetry/#/meter"),
        ("WATTLINE_MQTT_METER_TOPIC", "$share/g/telemetry"),
        ("WATTLINE_MQTT_VEHICLE_TOPIC", "telemetry/vehicle+"),
        ("WATTLINE_MQTT_METER_TOPIC", "telemetry/{ID}"),
        ("WATTLINE_MQTT_METER_TOPIC", "telemetry/meter-{id}"),
        ("WATTLINE_MQTT_METER_TOPIC", "{id}/meter/{id}"),
        ("WATTLINE_WEBHOOK_URL", "host/secret"),
        ("WATTLINE_WEBHOOK_URL", "ftp://user:secret@host"),
        ("WATTLINE_WEBHOOK_URL", "https://user:secret@"),
        ("WATTLINE_WEBHOOK_URL", "https://user:secret@host:70000/"),
        ("WATTLINE_WEBHOOK_URL", "https://host/a secret"),
        ("WATTLINE_WEBHOOK_SECRET", "secret"),
        ("WATTLINE_WEBHOOK_SECRET", "whsec_secret"),
        ("WATTLINE_WEBHOOK_SECRET", f"whsec_{b64encode(23 * b's').decode()}"),
        ("WATTLINE_WEBHOOK_SECRET", f"whsec_{b64encode(65 * b's').decode()}"),
        ("WATTLINE_WEBHOOK_SECRET", f"whsec_{b64encode(32 * b's').decode()}!"),
    ],
)
def test_what_cannot_be_used_is_refused_without_telling_a_password(variable: str, value: str) -> None:
    with pytest.raises(SetupError) as refused:
        Settings.from_environ({variable: value})
    assert str(refused.value).startswith(f"{variable} cannot be used; it must be ")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("variable", ["WATTLINE_MQTT_CA_FILE", "WATTLINE_MQTT_CERT_FILE"])
def test_certificates_are_for_an_encrypted_connection(variable: str) -> None:
    given = {variable: "/file.pem"}
    with pytest.raises(SetupError, match=f"{variable} is set, but the broker's URL is not mqtts://"):
        Settings.from_environ({**given, "WATTLINE_MQTT_URL": "mqtt://host"})
    assert Settings.from_environ({**given, "WATTLINE_MQTT_URL": "mqtts://host"}).mqtt_url
    # `load --broker` names another broker than the environment does.
    assert Settings.from_environ(given).mqtt_url is None


def test_a_password_needs_a_user() -> None:
    for url in ("mqtt://host", "mqtts://host"):
        with pytest.raises(SetupError, match="names no user") as refused:
            Settings.from_environ({"WATTLINE_MQTT_URL": url, "WATTLINE_MQTT_PASSWORD": "secret"})
        assert "secret" not in str(refused.value)
    for url in ("mqtt://user@host", ""):
        assert Settings.from_environ({"WATTLINE_MQTT_URL": url, "WATTLINE_MQTT_PASSWORD": "secret"}).mqtt_password


def test_hosts_are_names_without_ports() -> None:
    for good in "wattline", "wattline,wattline.example", "my_service, Wattline.Example.", "192.0.2.1":
        assert Settings.from_environ({"WATTLINE_HOSTS": good}).hosts == good
    for wrong in "wattline:8000", "http://wattline", "*.example", "wattline,", "a b", ".example", "[::1]", "w\u00e4":
        with pytest.raises(SetupError, match="WATTLINE_HOSTS cannot be used; it must be names without ports"):
            Settings.from_environ({"WATTLINE_HOSTS": wrong})


def test_a_key_needs_its_certificate() -> None:
    with pytest.raises(SetupError, match="WATTLINE_MQTT_CERT_FILE"):
        Settings.from_environ({"WATTLINE_MQTT_KEY_FILE": "/key.pem"})


def test_a_receiver_needs_a_secret() -> None:
    with pytest.raises(SetupError, match="WATTLINE_WEBHOOK_SECRET"):
        Settings.from_environ({"WATTLINE_WEBHOOK_URL": "https://host/"})
    secret = f"whsec_{b64encode(24 * b's').decode()}"
    both = {"WATTLINE_WEBHOOK_URL": "https://user:pass@host:8443/path?a=b", "WATTLINE_WEBHOOK_SECRET": secret}
    assert Settings.from_environ(both).webhook_secret == secret
