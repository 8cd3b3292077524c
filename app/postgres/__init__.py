"""Wattline's own PostgreSQL: finds its programs, starts and stops the server."""
