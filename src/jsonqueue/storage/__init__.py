"""The only code that touches the queue's files."""
