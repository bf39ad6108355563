"""The control plane in virtual time: the same state machines as in production, with faults.

`schedule.run` plays a seed: `cluster` drives root and workers, `training` their ranks, `faults`
what befalls them; `invariants` says what must hold after every event; `mutants` are wrong rules
that it must find. It models what the machines decide and when, not bytes.
"""
