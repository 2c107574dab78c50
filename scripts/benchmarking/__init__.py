"""What `scripts/bench.py` measures, and with; nothing imports it at run time.

`process`, `workload`, `gguf_file` and the peers also run under interpreters of their own, so they import the standard
library, numpy and the peer, and nothing of this project beside one another.
"""
