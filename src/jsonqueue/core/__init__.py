"""The judgement: pure functions and plain state. No I/O, no clock, no chance, no threads; all of that comes in by the door."""
