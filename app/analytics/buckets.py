"""The buckets of a series: fixed ones of UTC, and the days and months of a time zone."""

from datetime import UTC, date, datetime, time, timedelta
from functools import cache, lru_cache
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from sqlalchemy import bindparam, or_, select
from sqlalchemy.ext.asyncio import AsyncEngine

from app.analytics.series_source import Bucket, BucketOrAuto, Source, Width
from app.analytics.window import Window
from app.csv_rows import stamp
from app.database import reading
from app.errors import InvalidParameter, InvalidTimeRange
from app.tables import aggregate_retention

MAX_POINTS = 100_000
"""A series of this many buckets is a few megabytes; a longer one is requested in pieces, or in wider buckets."""

_SECONDS: dict[Width, int] = {"1m": 60, "1h": 3_600, "1d": 86_400}
_NAMES: dict[Width, str] = {"1m": "minutes", "1h": "hours", "1d": "days"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Buckets(NamedTuple):
    """The whole buckets in [start, end). With a `zone`, they are its days or months, whose lengths differ."""

    width: Bucket
    start: datetime
    end: datetime
    zone: ZoneInfo | None = None

    @property
    def seconds(self) -> int:
        """The width in seconds; of days and months of a zone, that of a usual day."""
        return _SECONDS["1d" if self.width == "1mo" else self.width]

    @property
    def number(self) -> int:
        """The number of buckets of a fixed width."""
        return (self.end - self.start) // timedelta(seconds=self.seconds)

    @property
    def bounds(self) -> tuple[datetime, ...]:
        """The starts of the days or months of the zone, and the end of the last one; none without a zone."""
        return () if self.zone is None else _bounds(self.start, self.end, self.width, self.zone)

    @property
    def source(self) -> Width:
        """The widest buckets of UTC of which all of these consist. Raises InvalidTimeRange when none do."""
        if self.width != "1mo" and self.zone is None:
            return self.width
        for width in reversed(_SECONDS):
            if not any((bound - _EPOCH) % timedelta(seconds=_SECONDS[width]) for bound in self.bounds):
                return width
        raise InvalidTimeRange(f"In that range, days of {self.zone} do not begin with a minute of UTC.")

    def ends(self, starts: list[int]) -> list[int]:
        """Returns the ends of the buckets with these starts, in seconds since 1970."""
        if self.zone is None:
            seconds = self.seconds
            return [start + seconds for start in starts]
        bounds = [int(bound.timestamp()) for bound in self.bounds]
        following = dict(pairwise(bounds))
        return [following[start] for start in starts]

    def refuse_dropped(self, kept_from: datetime | None) -> None:
        """Raises InvalidTimeRange when not all is kept of which the days or months of a zone are made."""
        if self.zone is not None and kept_from is not None and self.start < kept_from:
            raise InvalidTimeRange(
                f"In {self.zone}, these buckets are made from {_NAMES[self.source]}, which are kept from "
                f"{stamp(kept_from)} on: ask for a later `from`."
            )


async def fetch_retained(pool: AsyncEngine, window: Window, bucket: BucketOrAuto) -> set[str]:
    """Returns the names of aggregates that still hold whole buckets at the window's start; only `auto` needs them."""
    if bucket != "auto":
        return set()
    async with reading(pool) as connection:
        return set(await connection.scalars(_RETAINED, {"start": window.start}))


def choose_bucket(
    source: Source, window: Window, bucket: BucketOrAuto, max_points: int, retained: set[str], tz: str | None = None
) -> Buckets:
    """Returns the buckets of a width that the window touches; days and months are those of the time zone `tz`.

    `auto` chooses the narrowest width whose aggregates are `retained` and which gives at most `max_points`.
    Raises InvalidTimeRange when there are too many buckets, and InvalidParameter when there is no such zone.
    """
    if bucket == "1mo" or tz is not None:
        return of_zone(window, *_named(bucket, "UTC" if tz is None else tz))
    if bucket != "auto":
        buckets = _touched(window, bucket)
        if buckets.number > MAX_POINTS:
            raise InvalidTimeRange(
                f"There are {buckets.number:,} buckets of {bucket} in that range; an answer has at most {MAX_POINTS:,}."
            )
        return buckets
    for width in _SECONDS:
        buckets = _touched(window, width)
        if buckets.number <= max_points and retained.issuperset(source.aggregates[width]):
            return buckets
    raise InvalidTimeRange(f"There are {buckets.number:,} days in that range, but `maxPoints` is {max_points:,}.")


def _touched(window: Window, width: Width) -> Buckets:
    step = timedelta(seconds=_SECONDS[width])
    first, after = (window.start - _EPOCH) // step, -((_EPOCH - window.end) // step)
    return Buckets(width, _EPOCH + first * step, _EPOCH + after * step)


def _named(bucket: BucketOrAuto, tz: str) -> tuple[Bucket, ZoneInfo]:
    if bucket not in ("1d", "1mo"):
        raise InvalidParameter("tz: Give bucket=1d or bucket=1mo with it; minutes and hours are those of UTC.")
    if tz not in _zones():
        raise InvalidParameter(f"tz: There is no time zone {tz!r}; write one like Europe/Berlin.")
    return bucket, ZoneInfo(tz)


@cache
def _zones() -> set[str]:
    return available_timezones()


def of_zone(window: Window, width: Bucket, zone: ZoneInfo) -> Buckets:
    """Returns the days or months of the zone that the window touches. Raises InvalidTimeRange when there are too many.

    A day whose midnight is left out begins when the clock is put forward; one that is left out whole is none.
    """
    bounds = _bounds(*window, width, zone)
    if len(bounds) > MAX_POINTS:
        raise InvalidTimeRange(f"There are {len(bounds):,} days in that range; an answer has at most {MAX_POINTS:,}.")
    return Buckets(width, bounds[0], bounds[-1], zone)


@lru_cache(maxsize=16)
def _bounds(start: datetime, end: datetime, width: Bucket, zone: ZoneInfo) -> tuple[datetime, ...]:
    day = start.astimezone(zone).date()
    day = day.replace(day=1) if width == "1mo" else day
    found: list[datetime] = []
    while not found or found[-1] < end:
        found.append(datetime.combine(day, time(0), zone).astimezone(UTC))
        day = _next(day, width)
    return tuple(sorted({*found}))


def _next(day: date, width: Bucket) -> date:
    if width == "1d":
        return day + timedelta(days=1)
    return day.replace(year=day.year + day.month // 12, month=day.month % 12 + 1)


# The aggregates that still hold whole buckets from an instant on.
_RETAINED = select(aggregate_retention.c.name).where(
    or_(aggregate_retention.c.kept_from.is_(None), aggregate_retention.c.kept_from <= bindparam("start"))
)
