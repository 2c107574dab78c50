"""The programs and tools of `scripts/bench.py`; the package does not import it.

`process`, `workload`, `gguf_file` and the peers also run under other interpreters, so they import only the standard
library, numpy, the peer and one another.
"""
