"""Load tests: readings of a fleet made for one run, and a count of what became of them."""
