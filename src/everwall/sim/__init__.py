"""A whole cluster in one process: seeded faults, fake time, and checkers for the promises.

::

    hosts ── edge ── balancer ── data network ── nodes (engines) ── store links ── store in memory
      │                                            │                                │
      └──────────────── checkers: liveness, passage, order, books ──────────────────┘

Engines, balancer, record codec and store protocol are the real ones. Only what surrounds them is
made: an event heap instead of a clock, links that lose, delay and reorder, hosts with a small TCP. Every
choice is drawn from one seed, so a seed is a replay.
"""
