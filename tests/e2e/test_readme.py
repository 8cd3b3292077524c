"""Every line of the README's tour works, in its order."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

from app.simulator.fleet import Fleet
from tests.fixtures.service import Process

README = (Path(__file__).parents[2] / "README.md").read_text()


def answers(shell: str) -> list[Any]:
    """What the calls of a shell script print, decoded."""
    done = subprocess.run(["sh", "-euc", shell], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_tour_works(server_process: Process) -> None:
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    tour = next(block for block in blocks if "curl" in block)
    tour = tour.replace("http://127.0.0.1:8000", server_process.base_url).replace("curl ", "curl -sS -w '\\n' ")
    for minute in range(int(time.time()) // 60 - 20, int(time.time()) // 60):
        httpx.post(f"{server_process.base_url}/v1/telemetry", json=Fleet(3).readings(minute)).raise_for_status()

    performance, receipt, states, freshness, ready = answers(tour)

    assert performance["coverage"]["paired"] == performance["dataPoints"] == 20
    shown = json.loads(next(iter(re.findall(r"```json\n(.*?)```", README, flags=re.DOTALL))))
    assert receipt | {"committedAt": shown["committedAt"]} == shown
    assert [state["vehicleId"] for state in states] == ["V1", "vehicle-0001", "vehicle-0002"]
    assert freshness["devicesReporting"] == freshness["devicesExpected"] == 8
    assert ready["status"] == "ok"
