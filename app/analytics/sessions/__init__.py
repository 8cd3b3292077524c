"""Charging sessions: when a vehicle charged at a meter, and how much of the AC energy reached its battery."""
