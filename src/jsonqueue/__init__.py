"""jsonqueue: a durable task queue that needs no server."""
