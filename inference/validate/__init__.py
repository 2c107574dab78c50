"""Data validation: profiles prompts, checks expectations, and measures drift from other prompts.

rows      prompts and their labels, from files
profile   counts, lengths, duplicates, scripts, labels, outliers
drift     the distance between two profiles
report    the HTML page
command   --run_mode validate
"""
