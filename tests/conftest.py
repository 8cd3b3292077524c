"""What every test has: the engines of this machine, a migrated database of its own, the service on it."""

pytest_plugins = ["tests.fixtures.database", "tests.fixtures.service", "tests.fixtures.broker"]
