"""Reads files that other programs wrote: regular files only, JSON, and values checked by type and range.

Knows types, ranges and what to say about a wrong value; knows no key of any format.
"""
