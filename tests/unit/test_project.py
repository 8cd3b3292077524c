"""The promises of the project's own files: locked packages, a closed compose file, an image that finds its tree."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.broker import RECEIVE_MAXIMUM
from app.database import TRANSACTION_SECONDS
from app.fleet.states import REPORTING_MINUTES
from app.ingest.history.importer import QUARANTINED_ROWS
from app.ingest.http.body import MAX_BODY_BYTES
from app.ingest.store.writer import GROUP_READINGS
from app.ops.maintenance import QUARANTINE_ROWS

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ["requirements/runtime.txt", "requirements/dev.txt"]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def git(*arguments: str, root: Path = ROOT) -> str:
    """What git answers; nothing where the tree is no repository."""
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False).stdout


def dockerfile() -> list[list[str]]:
    """Returns the instructions of the Dockerfile, each split into words."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


def copied() -> list[str]:
    return [source for instruction, *words in dockerfile() if instruction == "COPY" for source in words[:-1]]


def locked(lock: str) -> dict[str, Requirement]:
    """Returns each package of a lock file. Its hashes stand on lines of their own, joined by backslashes."""
    text = (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split(" --hash=")[0] for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_is_pinned_by_hash(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            assert re.match(r"[a-z0-9-]+==\S+( ;[^\\]*?)?( +--hash=sha256:[0-9a-f]{64})+ *$", line), line[:80]


@pytest.mark.parametrize("lock", LOCKS)
def test_no_lock_records_where_packages_come_from(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    for address in ("://", "index-url", "find-links", "trusted-host", " @ ", "file:"):
        assert address not in text


@pytest.mark.parametrize(
    ("lock", "groups"), [("requirements/runtime.txt", ["build"]), ("requirements/dev.txt", ["build", "dev"])]
)
def test_each_lock_holds_what_the_project_asks_for(lock: str, groups: list[str]) -> None:
    asked = [*PROJECT["project"]["dependencies"], *(line for g in groups for line in PROJECT["dependency-groups"][g])]
    pins = locked(lock)
    for requirement in map(Requirement, asked):
        pin = pins[canonicalize_name(requirement.name)]
        (version,) = pin.specifier
        assert requirement.specifier.contains(version.version), f"{pin} does not fit {requirement}: run `make lock`"


def test_both_locks_pin_the_same_versions() -> None:
    runtime, dev = map(locked, LOCKS)
    assert {name: str(pin.specifier) for name, pin in runtime.items()} == {
        name: str(dev[name].specifier) for name in runtime
    }


def test_compose_publishes_on_loopback_only() -> None:
    ports = {name: service["ports"] for name, service in COMPOSE["services"].items() if "ports" in service}
    assert ports == {"wattline": ["127.0.0.1:8000:8000"], "mosquitto": ["127.0.0.1:1883:1883"]}
    assert not any("network_mode" in service for service in COMPOSE["services"].values())


def test_compose_says_out_loud_that_authentication_is_off() -> None:
    assert COMPOSE["services"]["wattline"]["environment"]["WATTLINE_AUTH"] == "off"


def test_compose_has_no_password_of_its_own() -> None:
    secrets = [
        value
        for service in COMPOSE["services"].values()
        for name, value in service["environment"].items()
        if "PASS" in name
    ]
    assert len(secrets) == 9
    assert all(re.fullmatch(r"\$\{(POSTGRES|MQTT|MQTT_DEVICE)_PASSWORD:\?.+\}", secret) for secret in secrets)
    addresses = [service["environment"].get("DATABASE_URL", "") for service in COMPOSE["services"].values()]
    assert not any(re.search(r"//[^/@]*:[^/@]*@", address) for address in addresses)


def test_compose_broker_keeps_what_comes_and_lets_nobody_in_without_a_password() -> None:
    text = (ROOT / "mosquitto.conf").read_text(encoding="utf-8")
    lines = [line.partition(" ")[::2] for line in text.splitlines() if line[:1].isalpha()]
    broker = dict(lines)
    assert len(broker) == len(lines)
    assert broker["persistence"] == "true"
    assert broker["max_inflight_messages"] == broker["max_queued_messages"] == "0"
    assert int(broker["max_queued_bytes"]) >= 10**9
    assert int(broker["max_packet_size"]) > MAX_BODY_BYTES
    assert broker["allow_anonymous"] == "false"
    service = COMPOSE["services"]["mosquitto"]
    assert f"mosquitto:{broker['persistence_location'].rstrip('/')}" in service["volumes"]
    assert Path(broker["password_file"]).is_relative_to(broker["persistence_location"])
    assert f"./mosquitto.acl:{broker['acl_file']}:ro" in service["volumes"]


def test_compose_migrates_before_it_serves() -> None:
    services = COMPOSE["services"]
    assert services["migrate"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert services["wattline"]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}


def test_compose_mounts_files_that_exist() -> None:
    mounts = [volume.split(":")[0] for s in COMPOSE["services"].values() for volume in s.get("volumes", [])]
    named = set(COMPOSE["volumes"])
    assert named <= set(mounts)
    assert [mount for mount in mounts if mount not in named and not (ROOT / mount).is_file()] == []


@pytest.mark.parametrize("source", copied())
def test_the_image_copies_what_exists_and_is_not_ignored(source: str) -> None:
    assert (ROOT / source).exists()
    assert f"!{source}" in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def test_the_image_holds_the_whole_service() -> None:
    assert {"app", "migrations", "timescale", "alembic.ini"} <= set(copied())


def test_the_image_installs_by_hash_and_drops_root() -> None:
    instructions = dockerfile()
    installs = [" ".join(words) for words in instructions if words[:3] == ["RUN", "pip", "install"]]
    assert ["--require-hashes" in line or "--no-deps --no-build-isolation" in line for line in installs] == [True, True]
    users = [words[1] for words in instructions if words[0] == "USER"]
    assert users
    assert users[-1] not in {"root", "0"}
    assert ["ENTRYPOINT", '["wattline"]'] in instructions


def test_numbers_agree_that_the_parts_may_not_take_from_each_other() -> None:
    devices = (ROOT / "app" / "dashboard" / "static" / "devices.js").read_text(encoding="utf-8")
    assert f"export const SILENT_MINUTES = {REPORTING_MINUTES};" in devices
    assert RECEIVE_MAXIMUM == 2 * GROUP_READINGS
    assert QUARANTINED_ROWS == QUARANTINE_ROWS // 10


@pytest.mark.parametrize("folder", ["timescale", "timescale/plain"])
def test_as_of_in_sql_rests_on_the_limit_of_a_store_transaction(folder: str) -> None:
    statements = "".join(path.read_text(encoding="utf-8") for path in (ROOT / folder).glob("*.sql"))
    assert set(re.findall(r"INTERVAL '(\d+) seconds'", statements)) == {str(TRANSACTION_SECONDS)}


@pytest.mark.parametrize("target", ["setup", "demo", "check", "test", "coverage", "soak", "lint", "bench", "help"])
def test_make_help_lists_the_target(target: str) -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^ +make {target} +\S", shown, re.MULTILINE)


def test_the_changelog_begins_with_what_is_next() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[:2] in (["Unreleased"], ["Unreleased", PROJECT["project"]["version"]])


def test_readme_and_ci_name_the_same_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme
    assert "make test" in readme
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_lines_of_sql_and_its_settings_are_no_longer_than_those_of_python() -> None:
    files = [path for path in (ROOT / "timescale").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [line for path in files for line in path.read_text(encoding="utf-8").splitlines() if len(line) > 120] == []


def released_migrations_that_differ(root: Path) -> list[str]:
    """The numbered files up to the revision of the newest release that are not as they were in it."""
    newest = git("tag", "--list", "v*", "--sort=-version:refname", root=root).partition("\n")[0]
    if not newest:
        return []
    tree = ("--", "migrations/versions", "timescale")
    released = max(
        Path(name).name[:4] for name in git("ls-tree", "-r", "--name-only", newest, *tree, root=root).split()
    )
    changed = git("diff", "--no-renames", "--name-only", newest, *tree, root=root).split()
    return [name for name in changed if re.match(r"\d{4}_", Path(name).name) and Path(name).name[:4] <= released]


def test_a_released_migration_never_changes() -> None:
    """Nothing is released as long as no tag v* exists; until then migrations are tidied, and this holds for none."""
    assert released_migrations_that_differ(ROOT) == []


def test_a_changed_migration_is_found_once_it_is_released(tmp_path: Path) -> None:
    first, second = (tmp_path / f"timescale/plain/000{number}_readings.sql" for number in (1, 2))
    script = tmp_path / "migrations/versions/0001_readings.py"
    for path in (first, script):
        path.parent.mkdir(parents=True)
        path.write_text("as released")
    git("init", root=tmp_path)
    git("add", ".", root=tmp_path)
    git("-c", "user.name=W", "-c", "user.email=w@localhost", "commit", "--message=Release", root=tmp_path)
    for path in (first, script):
        path.write_text("changed")
    assert released_migrations_that_differ(tmp_path) == []
    git("tag", "v0.1.0", root=tmp_path)
    second.write_text("new")
    git("add", ".", root=tmp_path)
    assert released_migrations_that_differ(tmp_path) == [str(path.relative_to(tmp_path)) for path in (script, first)]
