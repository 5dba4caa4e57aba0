"""How a process and the fleet of workers are doing, and who is told."""
