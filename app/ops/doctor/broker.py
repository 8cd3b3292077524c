"""The question to the broker about what it grants."""

import time
from typing import Any

from paho.mqtt.client import Client, ConnectFlags
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from app.broker import create_client, shown_address
from app.errors import SetupError
from app.ops.doctor.facts import Grants
from app.settings import Settings

ANSWER_SECONDS = 5


def ask_broker(settings: Settings) -> Grants:
    """Connects under a client id of its own: with the consumer's id, the broker would disconnect the consumer.

    Raises SetupError when the broker cannot be reached or refuses the client.
    """
    answers: list[tuple[ReasonCode, Properties | None]] = []

    def connected(_c: Client, _u: Any, _f: ConnectFlags, reason: ReasonCode, properties: Properties | None) -> None:
        answers.append((reason, properties))

    client = create_client(settings, "", persistent=False)
    client.on_connect = connected
    try:
        client.reconnect()
        deadline = time.monotonic() + ANSWER_SECONDS
        while not answers and client.socket() and time.monotonic() < deadline:
            client.loop(0.1)
    except (OSError, ValueError) as error:
        raise SetupError(f"The broker {shown_address(settings)} cannot be reached: {error}.") from None
    finally:
        client.disconnect()
    if not answers:
        raise SetupError(f"The broker {shown_address(settings)} does not answer: it may speak no MQTT 5, or want TLS.")
    reason, properties = answers[0]
    if reason.is_failure:
        raise SetupError(f"The broker {shown_address(settings)} refuses: {reason}.")
    return Grants(
        receive_maximum=getattr(properties, "ReceiveMaximum", 65_535),
        packet_bytes=getattr(properties, "MaximumPacketSize", None),
        session_seconds=getattr(properties, "SessionExpiryInterval", None),
        shares=bool(getattr(properties, "SharedSubscriptionAvailable", 1)),
        qos=getattr(properties, "MaximumQoS", 2),
    )
