"""Wattline: telemetry for electric-vehicle charging, each reading stored once, efficiency with its evidence."""

__version__ = "0.1.0"
