"""The control plane in virtual time: the same state machines as in production, with faults.

`schedule.run` plays one seed: `cluster` drives the root and the workers, `training` their ranks,
and `faults` strikes them; `invariants` states what must hold after every event; `mutants` are
wrong rules that the simulator must find. It models what machines decide and when, not bytes.
"""
