"""Starting, wiring and stopping the gateway."""
