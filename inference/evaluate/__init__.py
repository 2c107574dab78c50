"""Evaluation: scores of a model's answers, with confidence intervals, comparisons and thresholds.

examples   rows with references, from files
answers    a model's answers to these rows
scores     metrics as sums over rows
bootstrap  confidence intervals
result     all figures of an evaluation, as JSON
gate       thresholds
report     the HTML page (html, page.jinja)
command    --run_mode evaluate
"""
