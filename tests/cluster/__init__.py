"""A shop on a cluster whose nodes are killed, stopped and restarted, and lag. See scripts/test-cluster."""
