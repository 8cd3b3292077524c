"""The answer to a batch."""

from datetime import datetime

import msgspec


class Rejection(msgspec.Struct, frozen=True):
    """Why a reading was refused: its position in the batch, a stable code, the field at fault, a sentence."""

    index: int
    code: str
    field: str | None
    message: str


class Receipt(msgspec.Struct, frozen=True, rename="camel"):
    """What became of a batch; received = inserted + duplicates + rejected.

    `conflicts` are duplicates whose values differ from the stored ones, `late` inserted readings that are more than 10
    minutes old. `committed_at` is the database's clock at the end of the last transaction.
    """

    received: int
    inserted: int
    duplicates: int
    conflicts: int
    late: int
    rejected: list[Rejection]
    committed_at: datetime
