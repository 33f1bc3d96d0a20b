"""``python -m twisted_vllm`` is the command ``vllm-passthrough``."""

from twisted_vllm.cli.entry import main

main()
