"""A simulated vLLM server, for trials, tests and benchmarks. It says that it is simulated."""
