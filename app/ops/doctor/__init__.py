"""`wattline doctor`: reports what is in force, how the database does, and what is wrong. It changes nothing."""
