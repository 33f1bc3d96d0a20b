"""The supervisor of a gateway with several processes, and what makes a gateway one of them."""
