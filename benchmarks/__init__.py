"""Measures the worker against physical limits and against what a shop would otherwise run; `scripts/bench` runs it.

messages      the workload: recorded orders, multiplied with distinct ids
api_server    the Zithara API in a process of its own
processes     starts contestants and programs, and takes their wall-clock and CPU
contestants/  what is compared, one program each
throughput    who delivers how fast, and for how much CPU
scale         what a claim costs beside millions of other rows, many of one group, a long ledger
stress        a group that always fails, an old backlog, fifty workers
huge          the start over millions of completed rows, and building the index
memory        by threads, in steady load, with large bodies, of all programs together
idleness      latency, idle cost, start
ledger        what the delivery ledger costs, and what an unchanged snapshot saves
counted       costs that can be counted and repeat exactly: the guard
report        tables, JSON, plot
"""
