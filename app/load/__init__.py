"""Load tests: they send readings of a fleet made for one run, and count what became of them."""
