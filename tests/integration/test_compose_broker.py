"""The broker as docker-compose.yml starts it: its users, their rights, and that they outlive a restart."""

import os
import queue
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.fixtures.broker import await_listening
from tests.fixtures.service import free_port
from tests.fixtures.waiting import DEADLINE_S

ROOT = Path(__file__).parents[2]
PASSWORDS = {"MQTT_PASSWORD": "reads", "MQTT_DEVICE_PASSWORD": "sends"}


@contextmanager
def mosquitto(directory: Path, port: int) -> Iterator[None]:
    """Runs the commands of the compose file and mosquitto.conf in another directory and port, as this user."""
    configuration = (ROOT / "mosquitto.conf").read_text().replace("listener 1883", f"listener {port} 127.0.0.1")
    (directory / "data").mkdir(exist_ok=True)
    (directory / "config").mkdir(exist_ok=True)
    (directory / "config" / "mosquitto.acl").write_text((ROOT / "mosquitto.acl").read_text())
    (directory / "config" / "mosquitto.conf").write_text(
        configuration.replace("/mosquitto/", f"{directory}/") + ("user root\n" if os.geteuid() == 0 else "")
    )
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    *shell, script = compose["services"]["mosquitto"]["entrypoint"]
    script = re.sub("^chown .*$", "", script, flags=re.MULTILINE).replace("$$", "$")
    script = script.replace("/mosquitto/", f"{directory}/")
    process = subprocess.Popen([*shell, script], env=os.environ | PASSWORDS, stderr=subprocess.DEVNULL)
    try:
        await_listening(process, port)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


class User:
    """A connection with a user's name; `said` holds the answers: reasons and topics."""

    def __init__(self, port: int, name: str, password: str) -> None:
        self.said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self.client.username_pw_set(name, password)
        self.client.on_connect = lambda *given: self.said.put(str(given[3]))
        self.client.on_publish = lambda *given: self.said.put(str(given[3]))
        self.client.on_subscribe = lambda *given: self.said.put(str(given[3][0]))
        self.client.on_message = lambda *given: self.said.put(given[2].topic)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def hears(self) -> str:
        return self.said.get(timeout=DEADLINE_S)

    def publish(self, topic: str) -> str:
        self.client.publish(topic, b"{}", qos=1)
        return self.hears()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def test_devices_send_wattline_reads_and_added_users_outlive_a_restart(tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "data" / "passwords"
    with mosquitto(tmp_path, port):
        assert file.stat().st_mode & 0o077 == 0
        subprocess.run(["mosquitto_passwd", "-b", file, "gw7", "seven"], check=True)
    with mosquitto(tmp_path, port):
        users = [User(port, "wattline", "reads"), User(port, "device", "sends"), User(port, "gw7", "seven")]
        assert [user.hears() for user in users] == ["Success"] * 3
        reader, device, gateway = users
        for topic in ("$share/group/telemetry/meter/#", "telemetry/vehicle/#"):
            reader.client.subscribe(topic, qos=1)
            assert reader.hears() == "Granted QoS 1"
        # Mosquitto grants the subscription but sends nothing.
        device.client.subscribe("#", qos=1)
        assert device.hears() == "Granted QoS 1"
        for sender in (device, gateway):
            for topic in ("telemetry/meter/M1", "telemetry/vehicle/V1"):
                assert sender.publish(topic) == "Success"
                assert reader.hears() == topic
            assert sender.publish("elsewhere") == "Not authorized"
        assert device.said.empty()
        stranger = User(port, "device", "reads")
        assert stranger.hears() == "Not authorized"
        for user in (*users, stranger):
            user.close()
