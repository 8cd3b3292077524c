"""Rejected readings: stored with their reason, looked at, driven again."""
