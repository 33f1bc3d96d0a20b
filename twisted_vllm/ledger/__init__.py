"""What was used: readers of usage, prices, rows, the spool and its writer."""
