"""The demo: each source file of this Python's standard library is a task, real processes publish and parse them, and the totals are
checked against a direct pass over the same files.

``sources`` says what the tasks are, ``facts`` what is done with one, ``publisher``, ``worker`` and ``direct`` are the processes, ``stage``
starts and ends them, ``performance`` is one run of it all, ``view`` what one sees meanwhile, ``account`` asks the queue's files what it
did, and ``report`` prints it.
"""
