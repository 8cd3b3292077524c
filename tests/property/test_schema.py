"""/schema tells the truth about what may be sent and what is answered, and its examples work."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.fixtures.database import Server
from tests.fixtures.engines import on_plain
from tests.fixtures.sending import stamp
from tests.fixtures.service import serving
from tests.fixtures.waiting import DEADLINE_S

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
ROUTES = {
    ("post", "/v1/telemetry"),
    ("post", "/v1/ingest"),
    ("post", "/v1/ingestion"),
    ("post", "/v1/telemetry/meter"),
    ("post", "/v1/telemetry/vehicle"),
    ("post", "/v1/ingestion/mapping"),
    ("get", "/v1/ingestion/mapping"),
    ("get", "/v1/analytics/performance/{vehicle_id}"),
    ("get", "/v1/analytics/vehicles/states"),
    ("get", "/v1/analytics/meters/states"),
    ("get", "/v1/analytics/meters/{meter_id}/readings"),
    ("get", "/v1/analytics/vehicles/{vehicle_id}/readings"),
    ("get", "/v1/analytics/vehicles/{vehicle_id}/coverage"),
    ("get", "/v1/analytics/freshness"),
    ("get", "/health/live"),
    ("get", "/health/ready"),
}

# The engine cannot matter: both have the same functions in front of their differences.
pytestmark = on_plain


@pytest.fixture(scope="module")
def base_url(server: Server) -> Iterator[str]:
    url = server.clone()
    with serving(url, WATTLINE_LOG_LEVEL="error") as process:
        yield process.base_url
    server.drop(url)


@pytest.fixture(scope="module")
def document(base_url: str) -> dict[str, Any]:
    answer = httpx.get(f"{base_url}/schema", timeout=DEADLINE_S)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    parsed: dict[str, Any] = answer.json()
    return parsed


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_it_is_openapi_3_1_and_has_every_route(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    assert {(method, path) for method, path, _ in operations(document)} >= ROUTES
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema | {"$schema": "https://json-schema.org/draft/2020-12/schema"})


def test_every_operation_says_what_it_does_and_how_it_fails(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        assert operation.get("description") or operation.get("summary"), path
        for status, response in operation["responses"].items():
            if status.startswith(("4", "5")) and path != "/health/ready":
                assert list(response["content"]) == ["application/problem+json"], (method, path, status)


def test_every_example_of_a_body_is_accepted(document: dict[str, Any], base_url: str) -> None:
    now = stamp(datetime.now(UTC))
    posted = 0
    for method, path, operation in operations(document):
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            for example in content.get("examples", {}).values():
                answer = httpx.request(
                    method,
                    base_url + path,
                    json=_moved(example["value"], now),
                    headers={"Content-Type": media_type},
                    timeout=DEADLINE_S,
                )
                assert answer.status_code == httpx.codes.OK, (path, answer.text)
                assert answer.json().get("rejected", []) == []
                posted += 1
        if "requestBody" in operation:
            assert operation["requestBody"]["content"]["application/json"]["examples"], path
    assert posted >= 6


def _moved(value: Any, now: str) -> Any:
    if isinstance(value, list):
        return [_moved(item, now) for item in value]
    return value | {"timestamp": now} if "timestamp" in value else value


def without_twins(document: dict[str, Any]) -> dict[str, Any]:
    """Returns the document with one path for each of our functions that answers several, as three do for a batch."""

    def declared(methods: dict[str, Any]) -> str:
        return json.dumps([{**operation, "operationId": ""} for operation in methods.values()])

    once = {declared(methods): path for path, methods in reversed(document["paths"].items())}
    return document | {"paths": {path: document["paths"][path] for path in once.values()}}


@pytest.mark.parametrize("examples", [12, pytest.param(100, marks=pytest.mark.soak)])
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
def test_what_is_answered_is_what_is_declared(
    mode: GenerationMode, examples: int, document: dict[str, Any], base_url: str
) -> None:
    schema = schemathesis.openapi.from_dict(without_twins(document))
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.query or operation.body or operation.path_parameters):
            continue

        @settings(
            max_examples=examples,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode))
        def check(case: "schemathesis.Case[Any]") -> None:
            case.call_and_validate(base_url=base_url, checks=CHECKS, timeout=DEADLINE_S)

        check()
