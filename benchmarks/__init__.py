"""Measures the worker against physical limits and against what a shop would otherwise run; `scripts/bench` runs it.

messages      the workload: recorded orders, multiplied with distinct ids
api_server    the Zithara API in a process of its own
processes     starts contestants, and takes their wall-clock and CPU
contestants/  what is compared, one program each
throughput    who delivers how fast, and for how much CPU
scale         what a claim costs beside millions of other rows
idleness      latency, idle cost, memory, start
ledger        what the delivery ledger costs, and what an unchanged snapshot saves
counted       costs that can be counted and repeat exactly: the guard
report        tables, JSON, plot
"""
