"""Several processes that count as one: how they talk to each other, and the process that starts them."""
