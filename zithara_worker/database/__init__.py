"""The session with the shop's database: statements, errors of the server, the worker's own tables."""
