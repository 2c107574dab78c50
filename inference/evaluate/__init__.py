"""Evaluation: how good a model's answers are, how sure that is, and whether it is good enough.

examples   rows with references, from files
rows       what a model made of them, and the measuring of a model
metrics    scores as sums over rows
bootstrap  confidence intervals
result     all figures of an evaluation, as JSON
gate       thresholds
report     the page for people
"""
