"""A seeded fleet, the same one for the demo, load tests, tests and benchmarks."""
