"""Typed events over Pipes, and how a process gets its Pipe."""
