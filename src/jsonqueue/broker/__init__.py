"""What runs: the manager and the two brokers."""
