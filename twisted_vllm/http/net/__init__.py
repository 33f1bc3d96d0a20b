"""Sockets, deadlines and flow control below HTTP."""
