"""The policies: how long rows are kept, how often aggregates are refreshed, when chunks are compressed."""
