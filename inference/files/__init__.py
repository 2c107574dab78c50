"""Reads files that other programs wrote: regular files only, JSON, and values validated by type and range.

Knows types, ranges and how to report a wrong value; knows no key of any format.
"""
