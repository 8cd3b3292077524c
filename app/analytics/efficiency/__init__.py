"""How much of the AC energy reached the batteries: evidence, pairing, verdict, answers."""
