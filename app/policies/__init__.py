"""Policies: how long what is kept, how often it is refreshed, when it is compressed."""
