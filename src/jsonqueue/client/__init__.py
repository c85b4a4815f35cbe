"""What a user holds: Publisher, TaskHandle, Consumer."""
