"""The fixtures of every test: this machine's engines, a migrated database of its own, the service on it."""

import signal

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.fixtures.database", "tests.fixtures.service", "tests.fixtures.broker"]

# A shell without job control starts what it runs in the background with SIGINT ignored, and every process that a test
# starts would inherit that: Ctrl-C would end none of them. A handler, unlike SIG_IGN, is not inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no fault, so neither an example nor its making has a limit of its own.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
