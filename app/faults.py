"""The faults of a database: the driver's errors by what they mean, and what keeps a database from storing a batch."""

import re
from typing import Literal

import psycopg

# These are worth another try with the same data: the transaction lost against another one.
TRANSIENT = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure, psycopg.errors.LockNotAvailable)

# Nothing is wrong with the data: another time, or with another server, the same may work. The SQLSTATE of the last
# three makes them internal errors.
UNAVAILABLE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.TransactionTimeout,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,
)

# The causes for which no batch can be stored, each with the sentence for the operator. They are the values of `status`
# in /health/ready.
STORE_FAULTS = {
    "standby": "The server is a standby: nothing can be stored. Point DATABASE_URL to the primary.",
    "read_only": (
        "default_transaction_read_only is on: nothing can be stored. Turn it off for this database and role "
        "(ALTER DATABASE ... RESET, ALTER ROLE ... RESET)."
    ),
    "not_preloaded": (
        "The server does not load TimescaleDB: nothing can be stored, and most answers fail. Add timescaledb to "
        "shared_preload_libraries in postgresql.conf, and restart the server."
    ),
    "not_hypertables": (
        "meter_reading or vehicle_reading is no hypertable, as after an incomplete restore: nothing is stored. Restore "
        "into an empty database, with SELECT timescaledb_pre_restore(); before and SELECT timescaledb_post_restore(); "
        "after."
    ),
    "keys_missing": (
        "The primary key of meter_reading or vehicle_reading is missing, as after an incomplete restore: nothing is "
        "stored, since each reading could be stored twice. Restore into an empty database without an error; with "
        "TimescaleDB, SELECT timescaledb_pre_restore(); before and SELECT timescaledb_post_restore(); after."
    ),
    "not_permitted": (
        "The role may not write what a batch needs: nothing can be stored. As the owner of the database, run the GRANT "
        "statements of docs/operations.md, section Roles, for the role of DATABASE_URL."
    ),
    "policies_missing": "The policies were never applied, so nothing is refreshed or dropped: run `wattline migrate`.",
}


class CannotStore(psycopg.OperationalError):
    """The database answers, but one of STORE_FAULTS holds, whose sentence is the message."""

    def __init__(self, fault: str) -> None:
        super().__init__(STORE_FAULTS[fault])
        self.fault = fault


class NoAnswer(psycopg.OperationalError):
    """The database answers nothing: its processes are stopped, or the network swallows what is sent."""

    def __init__(self) -> None:
        super().__init__("The database does not answer.")


# Those that hold now, as one array; only for a database that is migrated.
FIND_STORE_FAULTS = """
    SELECT array_remove(ARRAY[
        CASE WHEN pg_is_in_recovery() THEN 'standby'
             WHEN current_setting('default_transaction_read_only')::boolean THEN 'read_only' END,
        engine_fault(),
        CASE WHEN (SELECT count(*) FROM pg_constraint
                   WHERE contype = 'p' AND conrelid IN ('meter_reading'::regclass, 'vehicle_reading'::regclass)) < 2
             THEN 'keys_missing' END,
        CASE WHEN NOT (SELECT bool_and(has_table_privilege(name, 'INSERT'))
                       FROM unnest(ARRAY['meter', 'vehicle', 'meter_reading', 'vehicle_reading', 'meter_state',
                                         'vehicle_state', 'touched_hour', 'quarantine']) AS name)
             THEN 'not_permitted' END,
        CASE WHEN NOT EXISTS (SELECT FROM policy_change) THEN 'policies_missing' END], NULL)
"""


# A connection that is refused has no SQLSTATE.
_TOO_MANY = re.compile("too many (clients|connections)|connection slots are reserved|no more connections allowed")
Cause = Literal["away", "disk_full", "frozen", "locked", "out_of_connections", "read_only"]


def cause_of(error: BaseException | None) -> Cause | None:
    """Returns what keeps the database from doing anything at all, by an error of the driver; None for other errors."""
    match error:
        case NoAnswer():
            return "frozen"
        case CannotStore(fault="read_only" | "standby") | psycopg.errors.ReadOnlySqlTransaction():
            return "read_only"
        case psycopg.errors.LockNotAvailable():
            return "locked"
        case psycopg.errors.DiskFull():
            return "disk_full"
        case psycopg.errors.TooManyConnections():
            return "out_of_connections"
        case psycopg.OperationalError(sqlstate=None) if not isinstance(error, CannotStore):
            return "out_of_connections" if _TOO_MANY.search(str(error)) else "away"
        case psycopg.errors.AdminShutdown() | psycopg.errors.CrashShutdown() | psycopg.errors.CannotConnectNow():
            return "away"
    return None
