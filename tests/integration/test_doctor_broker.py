"""The doctor's words about the broker."""

from contextlib import nullcontext

from app.ops.doctor.report import examine
from app.settings import Settings
from tests.fixtures.broker import Broker
from tests.fixtures.service import free_port


def report(**environ: str) -> str:
    """Returns the report on a broker, beside a database that is away, in one line."""
    environ = {"DATABASE_URL": f"postgresql://127.0.0.1:{free_port()}/x", **environ}
    text, healthy = examine(nullcontext(environ["DATABASE_URL"]), Settings.from_environ(environ), environ)
    assert not healthy
    return " ".join(text.split())


def test_what_the_broker_grants_is_said(broker: Broker) -> None:
    said = report(WATTLINE_MQTT_URL=broker.url)
    assert f"Broker broker {broker.url} in flight 65535 messages at most" in said
    assert "session never expires shared yes" in said
    assert "The broker" not in said


def test_a_broker_with_mosquitto_s_defaults_is_wrong(broker: Broker) -> None:
    broker.configure(f"listener {broker.port} 127.0.0.1", "allow_anonymous true")
    said = report(WATTLINE_MQTT_URL=broker.url)
    assert "The broker has at most 20 messages in flight" in said
    assert "max_inflight_messages 0" in said


def test_a_broker_that_is_away_or_refuses_is_wrong_and_no_password_is_shown(broker: Broker) -> None:
    secrets = {"WATTLINE_MQTT_PASSWORD": "other-secret"}
    away = report(WATTLINE_MQTT_URL=f"mqtt://user:first-secret@127.0.0.1:{free_port()}", **secrets)
    assert "cannot be reached: [Errno 111] Connection refused." in away
    broker.configure(f"listener {broker.port} 127.0.0.1", "allow_anonymous false")
    refused = report(WATTLINE_MQTT_URL=f"mqtt://user:first-secret@127.0.0.1:{broker.port}", **secrets)
    assert f"The broker {broker.url} refuses: Not authorized." in refused
    assert "secret" not in away + refused


def test_without_a_broker_nothing_is_said() -> None:
    assert "roker" not in report()
