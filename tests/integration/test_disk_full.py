"""A disk that is really full: batches and ready say so, and both recover by themselves."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from app.migrate import migrate
from app.settings import Settings
from tests.fixtures.database import available_engines
from tests.fixtures.sending import meter, minutes_ago, problem
from tests.fixtures.service import service

ROOT = Path(__file__).resolve().parents[2]
NAMESPACES = ["unshare", "--user", "--map-root-user", "--mount"]
MOUNT = 'mount -t tmpfs -o size=400m none "$0" && exec "$@"'
# It prints the URL of a server on that disk, then fills the disk or makes room, as it is told.
HOLD = """
import sys
from pathlib import Path
from app.postgres.embedded import running
disk, filler = Path(sys.argv[1]), Path(sys.argv[1]) / "filler"
with running(disk / "data", pg_bin=Path(sys.argv[2]), settings={"max_wal_size": "64MB", "min_wal_size": "32MB"}) as url:
    print(url, flush=True)
    for line in sys.stdin:
        if line == "fill\\n":
            with filler.open("ab", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError as error:
                    print(error.strerror, flush=True)
        else:
            filler.unlink()
            print("free", flush=True)
"""


def can_mount() -> bool:
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run([*NAMESPACES, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode
    )


pytestmark = pytest.mark.skipif(not can_mount(), reason="this machine lets nobody mount a disk of one's own")


class Disk:
    """A small disk of its own, in the namespace of the process that holds a server there."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.url = self._line()

    def fill(self) -> None:
        assert self._told("fill") == "No space left on device"

    def free(self) -> None:
        assert self._told("free") == "free"

    def _told(self, order: str) -> str:
        assert self._process.stdin
        print(order, file=self._process.stdin, flush=True)
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


@pytest.fixture(params=list(available_engines()))
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with held(tmp_path, available_engines()[request.param].bin) as disk:
        migrate(disk.url, engine=request.param)
        yield disk


@contextmanager
def held(directory: Path, pg_bin: Path) -> Iterator[Disk]:
    program = [sys.executable, "-c", HOLD, str(directory), str(pg_bin)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*NAMESPACES, "sh", "-c", MOUNT, str(directory), *program], stdin=pipe, stdout=pipe, text=True, env=environment
    ) as process:
        yield Disk(process)
        process.communicate()
    assert process.returncode == 0


async def test_a_full_disk_is_told_until_there_is_room(disk: Disk) -> None:
    async with service(Settings(database_url=disk.url)) as client:
        assert await ready(client) == (200, "ok")
        start = minutes_ago(3000)
        batches = [
            [meter(start + timedelta(minutes=minute), meter_id=f"M{n}") for n in range(100)] for minute in range(400)
        ]
        disk.fill()
        with capture_logs() as log:
            stored = 0
            while (answer := await client.post("/v1/telemetry", json=batches[stored])).status_code == httpx.codes.OK:
                stored += 1
            problem(answer, 503, "disk_full")
            problem(await client.post("/v1/telemetry", json=batches[stored]), 503, "disk_full")
        assert [line["faults"] for line in log if line["event"] == "store_unavailable"] == [["disk_full"]]
        assert await ready(client) == (503, "disk_full")
        disk.free()
        assert await ready(client) == (200, "ok")
        receipt = await client.post("/v1/telemetry", json=batches[stored])
        assert receipt.json()["inserted"] == len(batches[stored])
        assert await ready(client) == (200, "ok")


async def ready(client: httpx.AsyncClient) -> tuple[int, str]:
    answer = await client.get("/health/ready")
    return answer.status_code, answer.json()["status"]
