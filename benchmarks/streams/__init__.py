"""What open streams cost in memory and in timers."""
