"""What a user holds: publishers, consumers, task handles."""
