"""The container image: what goes into it (``lock``), building it (``build``), and checking it (``check``)."""
