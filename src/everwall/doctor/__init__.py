"""Is this installation right? Facts are collected first, then judged without I/O.

``store_facts`` asks a server and ``balancer_facts`` asks AWS; ``store_checks``, ``balancer_checks`` and
``node_checks`` turn facts into findings, each of which says what to do. ``sizing`` is the arithmetic of memory.
"""
