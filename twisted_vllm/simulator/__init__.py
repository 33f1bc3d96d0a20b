"""A stand-in for a vLLM server, for the demo, the tests and the benchmarks. It says that it is one."""
