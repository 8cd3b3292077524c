"""The columns of a file, or the members of its objects, and the fields of a reading that they stand for."""

from collections.abc import Collection, Iterable, Mapping

from app.errors import SetupError
from app.ingest.names import ATTRIBUTES, FIELDS

# A file whose objects keep bringing new members would fill the memory.
MAX_NAMES = 1_000


def parse_mapping(pairs: Iterable[str]) -> dict[str, str]:
    """Returns column -> field for the `column=field` of each --map. Raises SetupError."""
    mapping: dict[str, str] = {}
    for pair in pairs:
        column, equals, field = pair.rpartition("=")
        if not equals or field not in ATTRIBUTES:
            raise SetupError(f"--map {pair!r} must be COLUMN=FIELD, with FIELD one of {', '.join(ATTRIBUTES)}.")
        if column in mapping or field in mapping.values():
            raise SetupError(f"--map {pair!r}: that column or field is mapped twice.")
        mapping[column] = field
    return mapping


class Columns:
    """The fields of the names met so far; `ignored` holds the names that stand for no field."""

    def __init__(self, mapping: Mapping[str, str]) -> None:
        self._mapping = mapping
        self.fields: dict[str, str] = {}
        self.ignored: list[str] = []

    def refuse_missing(self, names: Collection[str], file: str) -> None:
        """Raises SetupError when --map names a column that is not among `names`, the file's columns."""
        for column, field in self._mapping.items():
            if column not in names:
                raise SetupError(
                    f"{file} has no column {column!r}, which --map {column}={field} names; "
                    f"its columns: {', '.join(names)[:200]}."
                )

    def means(self, name: str) -> str | None:
        """Returns the field that a column of this name stands for; --map takes precedence over the synonyms."""
        field = self._mapping.get(name) or FIELDS[name]
        return None if field in self._mapping.values() and name not in self._mapping else field

    def learn(self, names: Collection[str], file: str) -> bool:
        """Returns True when some of the names were new. Raises SetupError when two names mean one field."""
        new = [name for name in names if name not in self.fields and name not in self.ignored]
        for name in new:
            if (field := self.means(name)) is None:
                self.ignored.append(name)
                continue
            for other in [other for other, known in self.fields.items() if known == field]:
                raise SetupError(
                    f"{file} has two columns for {field}: {other!r} and {name!r}; choose one with --map {name}={field}."
                )
            self.fields[name] = field
        if len(self.fields) + len(self.ignored) > MAX_NAMES:
            raise SetupError(f"{file} has more than {MAX_NAMES} different columns.")
        return bool(new)
