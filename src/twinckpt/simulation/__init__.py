"""The control plane in virtual time: the same state machines as in production, with faults.

`cluster` drives root and workers; `schedule` draws clusters and faults from a seed;
`invariants` says what must hold after every event.
It models what the machines decide and when, not bytes.
"""
