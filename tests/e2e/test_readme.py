"""Every line of the README's tour works, in its order."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from app.simulator.charging import HOUR_US
from app.simulator.fleet import Fleet
from tests.fixtures.service import Process

END = "-- end of an answer --"
README = (Path(__file__).parents[2] / "README.md").read_text()


def answers(shell: str) -> list[Any]:
    """Returns the answers of the calls in a shell script: JSON decoded, CSV as lines."""
    done = subprocess.run(["sh", "-euc", shell], capture_output=True, text=True, check=True)
    texts = done.stdout.split(END)[:-1]
    return [json.loads(text) if text[0] in "[{" else text.splitlines() for text in texts]


def test_the_tour_works(server_process: Process) -> None:
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    tour = next(block for block in blocks if "curl" in block)
    tour = tour.replace("http://127.0.0.1:8000", server_process.base_url).replace("curl ", f"curl -sS -w '{END}' ")
    now_us = time.time_ns() // 1000
    readings = list(Fleet(3).measured(now_us - 3 * HOUR_US, now_us))
    server_process.post("/v1/telemetry", json=readings).raise_for_status()

    performance, fleet, csv, receipt, states, freshness, ready = answers(tour)

    of_vehicle = [reading for reading in readings if reading.get("vehicleId") == "vehicle-0001"]
    assert performance["dataPoints"] == len(of_vehicle)
    assert sum(fleet["columns"]["vehicleReadings"] + fleet["columns"]["meterReadings"]) == len(readings)
    assert csv[0].startswith("time,dcKwh,readings,")
    assert len(csv) > 30
    shown = json.loads(next(iter(re.findall(r"```json\n(.*?)```", README, flags=re.DOTALL))))
    assert receipt | {"committedAt": shown["committedAt"]} == shown
    assert [state["vehicleId"] for state in states] == ["V1", "vehicle-0001", "vehicle-0002"]
    assert freshness["devicesReporting"] == freshness["devicesExpected"] == 8
    assert ready["status"] == "ok"
