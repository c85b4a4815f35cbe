"""``jsonqueue bench``: how fast the queue is here, on this disk, measured from outside.

Every figure comes from processes of their own: the brokers under their manager, each publisher, each consumer. :mod:`actors` is what runs in
them, :mod:`stage` starts and ends them, :mod:`measures` says what is measured, :mod:`report` and :mod:`plot` show it.
"""
