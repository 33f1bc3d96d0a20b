"""What passed through the gateway of late: a time series in memory, in steps of 5 seconds and of a minute."""
