"""Chaos: a mix of runs by several processes and clients while everything around them breaks; then a proof.

`plans` deals out what is to happen to each run, by seed; `stories` plays it in workflows whose every call `ledger`
notes in a file, in the processes of `worker`. `clients` start and steer the runs and note what was accepted. `faults`
breaks workers, connections (through `proxy`) and the server of a `stage`. `audit.sql` notes claims and outcomes in the
database, `history` collects all that is known at the end, `checker` proves from it what has to hold, and `report` says
it; `campaign` is the whole. `sabotage` breaks the engine itself, for the checker to notice.
"""
