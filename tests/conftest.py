"""What every test has: the engines of this machine, a migrated database of its own, the service on it."""

import signal

pytest_plugins = ["tests.fixtures.database", "tests.fixtures.service", "tests.fixtures.broker"]

# A shell without job control starts what it runs in the background with SIGINT ignored, and every process that a test
# starts would inherit that: Ctrl-C would end none of them. A handler, unlike SIG_IGN, is not inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)
