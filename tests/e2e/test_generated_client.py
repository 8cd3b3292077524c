"""A client that a common generator makes from /schema is whole, well typed, and can talk to the real server."""

import compileall
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fixtures.database import Server
from tests.fixtures.engines import on_plain
from tests.fixtures.sending import minutes_ago
from tests.fixtures.service import serving

PACKAGE = "wattline_client"
OPERATIONS = {
    "telemetry": {"post_batch", "post_batch_ingest", "post_batch_ingestion", "post_meter_batch", "post_vehicle_batch"},
    "mapping": {"post_mapping", "get_mappings"},
    "storage": {"get_storage"},
    "analytics": {
        "get_performance",
        "get_meter_series",
        "get_vehicle_series",
        "get_fleet_series",
        "get_meter_readings",
        "get_vehicle_readings",
        "get_fleet_live",
        "get_meter_vehicles",
        "get_vehicle_coverage",
        "get_vehicle_meters",
        "get_vehicle_states",
        "get_meter_states",
        "get_freshness",
        "get_alerts",
        "get_efficiency",
        "get_sessions",
    },
    "health": {"get_live", "get_metrics", "get_ready"},
}
# openapi-python-client has no body for these. Its own remedy, content_type_overrides, makes a module that cannot be
# imported; without it, the client sends JSON.
BINARY_BODIES = ("Unsupported content type application/x-ndjson", "Unsupported content type application/msgpack")

# The engine cannot matter: both have the same functions in front of their differences.
pytestmark = on_plain


@pytest.fixture(scope="module")
def base_url(server: Server) -> Iterator[str]:
    url = server.clone()
    with serving(url) as process:
        yield process.base_url
    server.drop(url)


@pytest.fixture(scope="module")
def generated(base_url: str, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """Returns the generator's run; the last of its arguments is the package that it wrote."""
    package = tmp_path_factory.mktemp("generated") / PACKAGE
    generate = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
    return subprocess.run(
        [*generate, "--url", f"{base_url}/schema", "--output-path", str(package)],
        # The generator formats its files with the ruff of its own environment.
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def package(generated: subprocess.CompletedProcess[str]) -> Path:
    assert generated.returncode == 0, generated.stderr
    return Path(generated.args[-1])


@pytest.fixture
def client(package: Path, base_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(package.parent)
    with module("client").Client(base_url=base_url, raise_on_unexpected_status=True) as client:
        yield client


def module(name: str) -> Any:
    return importlib.import_module(f"{PACKAGE}.{name}")


def call(part: str, operation: str, *arguments: str, **named: Any) -> Any:
    """Returns the answer of a generated function, as the type that it declares."""
    return module(f"api.{part}.{operation}").sync(*arguments, **named)


def readings(vehicle_id: str, meter_id: str) -> list[Any]:
    """Returns half an hour of a meter and of the vehicle that charges at it, in the generated types."""
    models, first = module("models"), minutes_ago(40)
    return [
        reading
        for at in (first + timedelta(minutes=minute) for minute in range(31))
        for reading in (
            models.MeterReading(meter_id, at, kwh_consumed_ac=0.1, voltage=231.5),
            models.VehicleReading(vehicle_id, at, kwh_delivered_dc=0.09, meter_id=meter_id, soc=20.7),
        )
    ]


def test_every_operation_is_generated_under_its_own_name(
    generated: subprocess.CompletedProcess[str], package: Path
) -> None:
    written = {
        part.name: {file.stem for file in part.glob("*.py")} - {"__init__"}
        for part in (package / "api").iterdir()
        if part.is_dir()
    }
    assert written == OPERATIONS


def test_the_generator_warns_of_nothing_but_binary_bodies(generated: subprocess.CompletedProcess[str]) -> None:
    without_quotes = re.sub(r"^\{\n.*?^\}\n", "", generated.stderr, flags=re.MULTILINE | re.DOTALL)
    framed = ("Warning(s) encountered", "WARNING parsing POST /v1/", "If you believe this was a mistake")
    assert {line for line in without_quotes.splitlines() if line and not line.startswith(framed)} == {*BINARY_BODIES}


def test_the_client_compiles_and_is_well_typed(package: Path, tmp_path: Path) -> None:
    assert compileall.compile_dir(package, quiet=2)
    # client.py is the same for all schemas, and passes on what mypy calls wrong types, so mypy only follows it.
    mypy = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path)]
    files = [f"{PACKAGE}/{part}" for part in ("api", "models", "types.py", "errors.py")]
    checked = subprocess.run([*mypy, *files], cwd=package.parent, capture_output=True, text=True, timeout=100)
    assert checked.returncode == 0, checked.stdout


def test_a_batch_is_posted_and_its_receipt_read(client: Any) -> None:
    models, now = module("models"), minutes_ago(1)
    batch = [
        models.MeterReading("M1", now, kwh_consumed_ac=0.4796),
        models.VehicleReading("V1", now, kwh_delivered_dc=0.4227, meter_id="M1", soc=20.7),
    ]
    for inserted, duplicates in (2, 0), (0, 2):
        receipt = call("telemetry", "post_batch", client=client, body=batch)
        assert isinstance(receipt, models.Receipt)
        counted = (receipt.received, receipt.inserted, receipt.duplicates, receipt.rejected)
        assert counted == (2, inserted, duplicates, [])
        assert receipt.committed_at > now


def test_a_reading_alone_and_a_rejected_one_are_typed_too(client: Any) -> None:
    models, now = module("models"), minutes_ago(1)
    body = models.MeterReading("M2", now, kwh_consumed_ac=0.1)
    alone = call("telemetry", "post_meter_batch", client=client, body=body)
    assert (alone.received, alone.inserted) == (1, 1)
    wrong = [
        models.VehicleReading("V2", now, kwh_delivered_dc=0.1, soc=207),
        models.VehicleReading("V2", now, kwh_delivered_dc=-0.1),
    ]
    receipt = call("telemetry", "post_vehicle_batch", client=client, body=wrong)
    (rejection,) = receipt.rejected
    assert isinstance(rejection, models.Rejection)
    assert (rejection.index, rejection.code, rejection.field) == (1, "energy_out_of_range", "kwhDeliveredDc")
    (dropped,) = receipt.warnings
    assert isinstance(dropped, models.Dropped)
    assert (dropped.index, dropped.code, dropped.field) == (0, "soc_out_of_range", "soc")


def test_performance_and_states_are_read(client: Any) -> None:
    models = module("models")
    receipt = call("telemetry", "post_batch", client=client, body=readings("V3", "M3"))
    assert (receipt.received, receipt.inserted) == (62, 62)

    performance = call("analytics", "get_performance", "V3", client=client, from_=minutes_ago(60))
    assert isinstance(performance, models.Performance)
    assert performance.vehicle_id == "V3"
    assert performance.status is models.Status.OK
    assert performance.efficiency_ratio == pytest.approx(0.9)
    assert performance.avg_battery_temp is None
    assert isinstance(performance.coverage, models.Coverage)
    assert performance.from_ < performance.to

    (vehicle,) = call("analytics", "get_vehicle_states", client=client, limit=1, after="V2")
    assert isinstance(vehicle, models.VehicleState)
    assert (vehicle.vehicle_id, vehicle.soc, vehicle.battery_temp) == ("V3", 20.7, None)
    states = call("analytics", "get_meter_states", client=client)
    assert ("M3", 231.5) in [(meter.meter_id, meter.voltage) for meter in states]
    assert call("analytics", "get_freshness", client=client).devices_reporting >= 2


def test_a_mapping_is_made_and_its_history_read(client: Any) -> None:
    models = module("models")
    mapping = call("mapping", "post_mapping", client=client, body=models.PostMappingBody("V4", "M4"))
    assert mapping == models.VehicleMapping("V4", "M4", None, None)
    assert call("mapping", "get_mappings", client=client, vehicle_id="V4") == [mapping]


def test_a_refused_request_is_a_typed_problem(client: Any) -> None:
    models, now = module("models"), minutes_ago(1)
    refused = [
        (400, "empty_batch", call("telemetry", "post_batch", client=client, body=[])),
        (400, "invalid_parameter", call("analytics", "get_vehicle_states", client=client, limit=0)),
        (404, "no_charging_data", call("analytics", "get_performance", "nobody", client=client)),
    ]
    for status, code, problem in refused:
        assert isinstance(problem, models.Problem)
        assert (problem.status, problem.code) == (status, code)

    body = models.VehicleReading("V1", now, kwh_delivered_dc=-0.1)
    answer = module("api.telemetry.post_batch").sync_detailed(client=client, body=body)
    assert answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY
    assert answer.parsed.code == "all_rejected"
    assert answer.parsed.additional_properties["rejected"][0]["code"] == "energy_out_of_range"


def test_health_is_read(client: Any) -> None:
    assert call("health", "get_live", client=client).status == "ok"
    assert call("health", "get_ready", client=client).engine == "plain"
