"""Readings over HTTP: the routes, their bodies, and their description in /schema."""
