"""Benchmarks: seeded data, GC as in production, every figure with the reference of the same run beside it."""

from collections.abc import Callable

import pytest

_LINES = pytest.StashKey[list[str]]()


@pytest.fixture
def report(request: pytest.FixtureRequest, engine: str) -> Callable[[str], None]:
    """Adds a line to the summary at the end of the run."""
    lines = request.config.stash.setdefault(_LINES, [])
    return lambda line: lines.append(f"{engine}: {line}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_LINES, []):
        terminalreporter.write_line(line)
