"""Batches of rows in, records out: the part that every data engine (Beam, Ray) shares.

    elements       rows of an engine as prompts
    shared_model   models that answer batches, one per config and process

Knows no engine. The failure of a row stays its own, and the rows of a batch run together.
"""
