"""The facts that the doctor learns: rows of the functions that both engines offer, and more; and its findings."""

from collections.abc import Mapping
from datetime import datetime, timedelta

import msgspec

from app.policies.plan import Plan
from app.settings import Settings


class Finding(msgspec.Struct, frozen=True):
    """Something that is wrong: a stable code, and a sentence that says what to do about it, and who can.

    `about` names what is concerned where several findings may have one code. Figures in the sentence may change while
    the finding stays the same.
    """

    code: str
    sentence: str
    about: str = ""


class Server(msgspec.Struct, frozen=True):
    """Facts of any PostgreSQL server."""

    postgresql: str
    postgresql_number: int
    timescaledb: str | None
    started_at: datetime
    unsafe_settings: list[str]
    connections_allowed: int
    service_connections: int
    data_directory: str | None
    database_bytes: int


class Job(msgspec.Struct, frozen=True):
    """A row of background_jobs()."""

    job_id: int
    work: str
    target: str
    schedule: timedelta
    owner: str
    owner_may_login: bool
    paused: bool
    last_start: datetime | None
    last_status: str | None
    crashes: int
    next_start: datetime | None
    due_at: datetime | None
    last_error: str | None

    @property
    def name(self) -> str:
        """The id, the work and its target: `1000 (refresh meter_minute)`."""
        return f"{self.job_id} ({self.work} {self.target})"


class Scheduler(msgspec.Struct, frozen=True):
    """The row of job_scheduler(); an engine without jobs has none."""

    licence: str
    workers: int
    workers_setting: str
    workers_in_use: dict[str, int]
    running: bool | None
    restoring: bool

    @property
    def all_in_use(self) -> bool:
        """Whether no worker is left, so that no other job can start."""
        return sum(self.workers_in_use.values()) >= self.workers


class Aggregate(msgspec.Struct, frozen=True):
    """A row of aggregate_freshness()."""

    name: str
    materialized_through: datetime | None
    as_of: datetime | None


class Size(msgspec.Struct, frozen=True):
    """A row of storage_sizes()."""

    name: str
    rows_estimated: int | None
    bytes: int | None
    parts: int
    compressed_parts: int
    oldest: datetime | None
    newest: datetime | None


class Devices(msgspec.Struct, frozen=True):
    """The number of devices in service, of those that report, and of those that have reported within a day."""

    expected: int
    reporting: int
    reported_today: int


class AlikeIds(msgspec.Struct, frozen=True):
    """Ids of a stream's devices in service that differ in upper and lower case only; one of `groups` such groups."""

    stream: str
    ids: list[str]
    groups: int


class ImplausibleDevices(msgspec.Struct, frozen=True):
    """Devices in service with an open alert about implausible energy that looks alike, the first of `count`."""

    looks_like: str
    names: list[str]
    count: int


class Flood(msgspec.Struct, frozen=True):
    """The registered device, or else the reason, with the most of the last day's readings in a full quarantine."""

    source: str
    device: str | None
    code: str
    count: int


class Grants(msgspec.Struct, frozen=True):
    """The limits in the broker's CONNACK; where it names none, only those of the protocol apply."""

    receive_maximum: int
    packet_bytes: int | None
    session_seconds: int | None
    shares: bool
    qos: int


class Facts(msgspec.Struct, kw_only=True):
    """All that was asked. What could not be read is None or empty, and `unread` says why.

    `revision` is empty before the first migration.
    """

    settings: Settings
    variables: Mapping[str, str]
    needed_revision: str
    database: str
    away: str | None = None
    local: bool = False
    server: Server | None = None
    now: datetime | None = None
    clock_ahead_seconds: float = 0.0
    disk: tuple[int, int] | None = None
    revision: str | None = None
    by_other_sql: bool = False
    engine: str | None = None
    recorded: dict[str, float] = {}
    installed_at: datetime | None = None
    store_faults: list[str] = []
    plan: Plan | None = None
    jobs: list[Job] = []
    scheduler: Scheduler | None = None
    uncompressed: list[tuple[str, int, int]] = []
    aggregates: list[Aggregate] = []
    devices: Devices | None = None
    alike_ids: list[AlikeIds] = []
    implausible: list[ImplausibleDevices] = []
    prepared_until: datetime | None = None
    sizes: list[Size] = []
    quarantined: int = 0
    rejected_today: list[tuple[str, int]] = []
    flood: Flood | None = None
    unread: list[Finding] = []
    grants: Grants | None = None
    broker_away: str | None = None
