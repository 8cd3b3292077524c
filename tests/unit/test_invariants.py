"""The rules of policies.toml: what may stand in it, on both sides of each limit."""

import re
from pathlib import Path

import pytest

from app.errors import SetupError
from app.policies.desired import POLICIES_FILE
from app.policies.invariants import read_policies

FILE = POLICIES_FILE.read_text()

# Entry of the file, the value nearest to the limit that is refused, the one that is accepted, and whose limit it is.
LIMITS = [
    ("retention.meter_reading", '"8 days"', '"11 days"', "meter_minute is refreshed over the last 8 days"),
    ("retention.vehicle_reading", '"10 days"', '"11 days"', "columnstore_after.vehicle_reading"),
    ("retention.meter_minute", '"18 days"', '"19 days"', "meter_hour is refreshed over the last 9 days"),
    ("retention.fleet_vehicle_minute", '"18 days"', '"19 days"', "fleet_vehicle_hour is refreshed"),
    ("retention.meter_hour", '"20 days"', '"21 days"', "meter_day is refreshed over the last 11 days"),
    ("retention.import_journal", '"29 days"', '"30 days"', "meter_reading"),
    ("retention.efficiency_hour", '"179 days"', '"180 days"', "meter_minute"),
    ("retention.alert", '"179 days"', '"180 days"', "vehicle_minute"),
    ("refresh.meter_minute.start_offset", '"7 days"', '"169 hours"', "readings may arrive so late"),
    ("refresh.meter_minute.start_offset", '"10081 minutes"', '"10082 minutes"', "wait for their refresh"),
    ("refresh.meter_hour.start_offset", '"8 days"', '"193 hours"', "meter_minute, which it reads"),
    ("refresh.meter_day.start_offset", '"9 days"', '"217 hours"', "meter_hour, which it reads"),
    ("refresh.meter_day.end_offset", '"10 days"', '"9 days"', "two buckets"),
    ("refresh.meter_hour.end_offset", '"59 seconds"', '"1 minute"', "newer rows of meter_minute"),
    ("refresh.meter_minute.schedule_interval", '"9 seconds"', '"10 seconds"', "transactions"),
    ("refresh.meter_minute.buckets_per_batch", "-1", "0", "at least 0"),
    ("columnstore_after.meter_reading", '"191 hours"', '"192 hours"', "batches write"),
    ("columnstore_after.meter_reading", '"30 days"', '"29 days"', "retention.meter_reading"),
    ("columnstore_after.meter_minute", '"8 days"', '"193 hours"', "its own refresh"),
    ("chunk_interval.meter_reading", '"59 minutes"', '"1 hour"', "each chunk"),
    ("chunk_interval.meter_reading", '"23 days"', '"22 days"', "dropped as a whole"),
]


def with_entry(entry: str, value: str) -> str:
    """The file with another value there."""
    table, _, key = entry.rpartition(".")
    head, heading, rest = FILE.partition(f"[{table}]\n")
    assert heading, entry
    edited, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", rest, count=1, flags=re.MULTILINE)
    assert count == 1, entry
    return head + heading + edited


def read(text: str, tmp_path: Path) -> None:
    file = tmp_path / "policies.toml"
    file.write_text(text)
    read_policies(file)


@pytest.mark.parametrize(("entry", "refused", "accepted", "whose"), LIMITS)
def test_a_policy_beyond_its_limit_is_refused_by_name_and_the_limit_itself_is_taken(
    entry: str, refused: str, accepted: str, whose: str, tmp_path: Path
) -> None:
    read(with_entry(entry, accepted), tmp_path)
    with pytest.raises(SetupError) as error:
        read(with_entry(entry, refused), tmp_path)
    message = str(error.value)
    assert message.startswith("policies.toml: ")
    assert refused.strip('"') in message
    assert whose in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [
        ("retention.meter_reading", '"1 second"', 'retention.meter_reading = "1 second" must be at least "9 days"'),
        ("chunk_interval.meter_reading", '"45 days"', 'chunk_interval.meter_reading = "45 days" must be at most "31'),
        ("refresh.meter_day.buckets_per_batch", "-5", "refresh.meter_day.buckets_per_batch = -5 must be at least 0"),
        ("retention.meter_reading", '"7 weeks"', 'retention.meter_reading = "7 weeks": it must be like "8 days"'),
        ("retention.meter_reading", "7", "retention.meter_reading = 7: Expected `str`, got `int`"),
        ("refresh.meter_hour.end_offset", '"soon"', 'refresh.meter_hour.end_offset = "soon": it must be like "8 days"'),
        ("refresh.meter_hour.buckets_per_batch", "true", "refresh.meter_hour.buckets_per_batch = true: Expected `int`"),
    ],
)
def test_nonsense_is_told_with_key_value_and_what_would_do(entry: str, value: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError) as error:
        read(with_entry(entry, value), tmp_path)
    assert words in str(error.value)


def test_each_broken_rule_is_named(tmp_path: Path) -> None:
    text = with_entry("retention.meter_reading", '"3 days"').replace(
        'meter_minute = "180 days"', 'meter_minute = "5 days"'
    )
    with pytest.raises(SetupError) as error:
        read(text, tmp_path)
    for entry in ("retention.meter_reading", "retention.meter_minute", "columnstore_after.meter_reading"):
        assert entry in str(error.value)


def test_short_chunks_leave_a_refresh_the_day_in_which_they_may_be_dropped(tmp_path: Path) -> None:
    short = re.sub(r"(?<=_reading = )\"1 day\"", '"1 hour"', FILE).replace('"10 days"', '"193 hours"')
    with pytest.raises(SetupError, match=r'retention.meter_reading = "215 hours" must be at least "9 days"'):
        read(re.sub(r"(?<=_reading = )\"30 days\"", '"215 hours"', short), tmp_path)
    read(re.sub(r"(?<=_reading = )\"30 days\"", '"216 hours"', short).replace('_hour = "193', '_hour = "217'), tmp_path)


def test_an_aggregate_that_is_not_refreshed_keeps_what_it_is_made_of(tmp_path: Path) -> None:
    head, _, rest = FILE.partition("[refresh.meter_hour]")
    without = head + rest.partition("buckets_per_batch = 168\n")[2]
    with pytest.raises(SetupError, match=r'retention.meter_minute = "180 days" needs refresh.meter_hour'):
        read(without, tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FILE + "\n[retention_]\n", "retention_"),
        (FILE.replace('end_offset = "1 minute"\n', "", 1), "refresh.meter_minute lacks end_offset"),
        (FILE.replace("end_offset", "end", 1), "refresh.meter_minute.end is unknown"),
        (FILE.replace("quarantine =", "quarantaine ="), "quarantaine"),
        ("retention = 7\n", "retention"),
        ("[[[", "no TOML"),
    ],
)
def test_what_is_misspelt_or_missing_is_named(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError) as error:
        read(text, tmp_path)
    assert words in str(error.value)
