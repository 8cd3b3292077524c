"""Wattline's own PostgreSQL: finding its programs, starting and stopping the server."""
