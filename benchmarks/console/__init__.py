"""What the console costs the data path."""
