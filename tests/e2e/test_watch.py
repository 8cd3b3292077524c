"""What the real service says by itself about its database: in ready, in its metrics and in its log."""

import json
from pathlib import Path
from typing import Any

import psycopg
from prometheus_client.parser import text_string_to_metric_families

from tests.fixtures.service import Process, serving
from tests.fixtures.waiting import eventually

DRIFT = {
    "plain": "UPDATE retention SET drop_after = INTERVAL '40 days' WHERE name = 'meter_reading'",
    "timescale": """
        SELECT alter_job(job_id, schedule_interval => INTERVAL '2 hours') FROM timescaledb_information.jobs
        WHERE proc_name = 'cagg_refresh' AND config ->> 'aggregate' = 'meter_hour'
    """,
}
MENDED = {
    "plain": "UPDATE retention SET drop_after = INTERVAL '30 days' WHERE name = 'meter_reading'",
    "timescale": DRIFT["timescale"].replace("2 hours", "1 minute"),
}


def warnings(process: Process) -> dict[str, str]:
    ready = process.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ok")
    return {warning["code"]: warning["detail"] for warning in ready.json()["warnings"]}


def logged(file: Path, event: str, code: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if (line["event"], line.get("code")) == (event, code)]


def findings(process: Process) -> set[str]:
    families = text_string_to_metric_families(process.get("/metrics").text)
    return {
        sample.labels["code"] for family in families for sample in family.samples if sample.name == "wattline_finding"
    }


def test_a_policy_changed_by_hand_is_told_within_a_minute_and_its_end_too(
    database_url: str, connection: psycopg.Connection, engine: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr, serving(database_url, stderr=stderr, WATTLINE_LOG_LEVEL="info") as process:
        eventually(lambda: process.get("/health/ready").json()["checkedAt"])
        assert "policy_drift" not in warnings(process)
        connection.execute(DRIFT[engine].encode())
        detail = eventually(lambda: warnings(process).get("policy_drift"))
        assert ("(was 40 days)" if engine == "plain" else "(was each 2 hours") in str(detail)
        assert "policy_drift" in findings(process)
        connection.execute(MENDED[engine].encode())
        eventually(lambda: "policy_drift" not in warnings(process))
        assert "policy_drift" not in findings(process)
    (begun,), (ended,) = (logged(log, event, "policy_drift") for event in ("finding", "finding_ended"))
    assert begun["sentence"] == ended["sentence"] == detail
