"""``jsonqueue bench``: how fast the queue is here, on this disk, measured from outside.

Brokers, publishers and consumers each run in a process of their own. :mod:`actors` is what runs in these, :mod:`stage` starts and ends
them, :mod:`measures` says what is measured, :mod:`report` and :mod:`plot` show it.
"""
