"""The choice of a PostgreSQL, the demands of a data directory, and the content of the configuration file."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from app.errors import SetupError
from app.postgres.binaries import matching
from app.postgres.embedded import CONFIGURATION, Binaries, find_binaries


def installation(place: Path, version: str, *, community: bool = False, apache: bool = False) -> Path:
    """Makes programs that only know their version, and the files by which TimescaleDB is recognised."""
    programs = {"postgres": version, "initdb": version}
    (place / "bin").mkdir(parents=True)
    for program in programs:
        (place / "bin" / program).write_text(f"#!/bin/sh\necho '{program} (PostgreSQL) {version}'\n")
        (place / "bin" / program).chmod(0o755)
    (place / "lib").mkdir()
    (place / "share" / "extension").mkdir(parents=True)
    if community or apache:
        (place / "lib" / "timescaledb-2.29.2.so").touch()
        (place / "share" / "extension" / "timescaledb.control").touch()
    if community:
        (place / "lib" / "timescaledb-tsl-2.29.2.so").touch()
    return place / "bin"


def made_by(data_dir: Path, pg_bin: Path, version: tuple[int, int], *, timescale: bool) -> Path:
    (data_dir / "postgres").mkdir(parents=True)
    (data_dir / "postgres" / "PG_VERSION").write_text(f"{version[0]}\n")
    written = {"bin": str(pg_bin), "version": version, "timescale": timescale}
    (data_dir / "server.json").write_text(json.dumps(written))
    return data_dir


def test_a_named_postgresql_is_used_with_or_without_timescaledb(tmp_path: Path) -> None:
    plain = installation(tmp_path / "plain", "17.5 (Debian 17.5-1.pgdg120+1)")
    assert find_binaries(plain) == Binaries(plain, (17, 5), False)
    community = installation(tmp_path / "community", "18.6", community=True)
    assert find_binaries(community) == Binaries(community, (18, 6), True)


def test_the_apache_edition_of_timescaledb_does_not_count(tmp_path: Path) -> None:
    assert not find_binaries(installation(tmp_path, "18.6", apache=True)).timescale


@pytest.mark.parametrize("version", ["15.9", "19beta1", "nonsense"])
def test_a_named_postgresql_of_another_version_is_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(SetupError, match=r"WATTLINE_PG_BIN=.* holds no usable PostgreSQL 16 to 18"):
        find_binaries(installation(tmp_path, version))


def test_a_named_directory_without_programs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"WATTLINE_PG_BIN=.* holds no usable"):
        find_binaries(tmp_path)


def test_a_directory_stays_with_what_made_it(tmp_path: Path) -> None:
    plain = installation(tmp_path / "plain", "16.9")
    data_dir = made_by(tmp_path / "data", plain, (16, 9), timescale=False)
    assert matching(data_dir, None) == Binaries(plain, (16, 9), False)


def test_a_directory_made_plain_stays_plain_under_a_server_with_timescaledb(tmp_path: Path) -> None:
    community = installation(tmp_path / "community", "18.6", community=True)
    data_dir = made_by(tmp_path / "data", tmp_path / "gone", (18, 4), timescale=False)
    assert matching(data_dir, community) == Binaries(community, (18, 6), False)


@pytest.mark.parametrize(
    ("found", "community", "like"),
    [("18.6", True, "PostgreSQL 17 with TimescaleDB"), ("17.5", False, "PostgreSQL 17 with TimescaleDB")],
    ids=["other major version", "TimescaleDB gone"],
)
def test_a_mismatch_is_one_line_that_says_what_to_do(tmp_path: Path, found: str, community: bool, like: str) -> None:
    pg_bin = installation(tmp_path / "found", found, community=community)
    data_dir = made_by(tmp_path / "data", tmp_path / "gone", (17, 2), timescale=True)
    with pytest.raises(
        SetupError, match=rf"made by PostgreSQL 17\.2 with TimescaleDB at .*set WATTLINE_PG_BIN to a {like}"
    ):
        matching(data_dir, pg_bin)


def test_binaries_that_are_gone_without_their_like_are_named(tmp_path: Path) -> None:
    data_dir = made_by(tmp_path / "data", tmp_path / "gone", (16, 1), timescale=False)
    with pytest.raises(SetupError, match=r"PostgreSQL 16\.1 at .*gone, and this is no longer there: restore it"):
        matching(data_dir, None)


@pytest.mark.parametrize("lost", ["server.json", "postgres/PG_VERSION"])
def test_an_incomplete_directory_is_one_line(tmp_path: Path, lost: str) -> None:
    data_dir = made_by(tmp_path / "data", tmp_path, (18, 6), timescale=False)
    (data_dir / lost).unlink()
    with pytest.raises(SetupError, match=r"is not complete .*restore it, or remove it with its data"):
        matching(data_dir, None)


def test_every_setting_of_the_server_has_its_reason() -> None:
    lines = CONFIGURATION.read_text().splitlines()
    for above, line in pairwise(lines):
        setting, _, reason = line.partition("#")
        assert reason.strip() or above.startswith("#") or not setting.strip(), line
