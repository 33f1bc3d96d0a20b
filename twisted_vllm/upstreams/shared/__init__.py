"""What several processes of one gateway tell each other of the servers. A single process imports nothing of it."""
