"""Rejected readings, stored with their reasons until someone looks at them or drives them again."""

import hashlib
from collections import Counter

import psycopg

from app.ingest.batch import RejectedReading, Source
from app.ingest.store.statements import clock, transaction


async def keep_rejected(connection: psycopg.AsyncConnection, source: Source, rejected: list[RejectedReading]) -> int:
    """Stores the rejected readings in one short transaction; one that is there already is counted again.

    Returns the database's clock in microseconds since 2000-01-01 UTC.
    """
    by_key = {(_digest(reading), reading.code): reading for reading in rejected}
    times = Counter((_digest(reading), reading.code) for reading in rejected)
    # Sorted by key, so that two processes that reject the same readings cannot deadlock.
    rows = [
        (
            source,
            reading.topic,
            reading.stream,
            reading.device,
            reading.code,
            reading.field,
            reading.message,
            reading.payload,
            digest,
            times[digest, code],
        )
        for (digest, code), reading in sorted(by_key.items(), key=lambda item: item[0])
    ]
    async with transaction(connection):
        await connection.execute(
            """
            INSERT INTO quarantine AS known (source, topic, stream, device, code, field, message, payload, hash, times)
            SELECT * FROM unnest(
                %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::bytea[],
                %s::bytea[], %s::integer[])
            ON CONFLICT (hash, code) DO UPDATE SET
                times = least(known.times::bigint + excluded.times, 2147483647), last_at = now()
            """,
            [list(column) for column in zip(*rows, strict=True)],
        )
        return await clock(connection)


def _digest(reading: RejectedReading) -> bytes:
    """Returns a digest that includes the topic: the same payload from another device is another reading."""
    digest = hashlib.blake2b(reading.payload, digest_size=16)
    if reading.topic is not None:
        digest.update(b"\0" + reading.topic.encode())
    return digest.digest()
