"""The worker: what `consume` runs. `loop` has the order of the steps; each other file is one step, or builds them."""
