"""A shop on its worst day: everything fails at random, and every message is accounted for. `scripts/chaos` runs it.

world       what happened, and when: arrivals at the API, kills, stops, outages of the database
host        the API that misbehaves, one address a worker, so that each arrival tells who sent it
publishers  the shop's side: threads that publish in transactions of any length
fleet       the worker processes, and the killer
account     what became of every message, and the verdict
"""
