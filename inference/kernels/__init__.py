"""Kernels: the operations that a decoder step is made of, behind one interface.

`stock` builds them from MindSpore's own operators and runs on every device; it is the reference that any faster
implementation is held to.
"""
