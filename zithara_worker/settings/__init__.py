"""The table of all keys, and where each value comes from."""
