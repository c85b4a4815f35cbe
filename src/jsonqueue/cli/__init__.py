"""The command line: parse, call, print.

``app`` holds the table of commands and turns errors into one sentence and an exit status; each command lives in a module of its own and is
imported only when it runs, so that ``jsonqueue publish`` starts quickly. ``text`` and ``console`` are the only way to the terminal.
"""
