"""What is told of requests and of the gateway to other programs and to people."""
