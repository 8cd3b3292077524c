"""Wattline's own PostgreSQL: finding the programs, starting and stopping the server."""
