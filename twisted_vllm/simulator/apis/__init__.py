"""The APIs of a vLLM 0.32 server, each in the shapes that it was seen to give."""
