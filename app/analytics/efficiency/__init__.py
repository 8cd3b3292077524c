"""The share of the AC energy that reached the batteries: evidence, pairing, verdict, answers."""
