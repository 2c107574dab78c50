"""Structured output: JSON schemas, regular expressions, grammars, choices, and tool calls.

    structure    converts settings to a grammar
    vocabulary   a tokenizer's tokens as bytes, for grammars
    constraint   the tokens that a grammar allows next
    tools        a request's tools: which may be called, and the grammar of a required call
    tool_calls   parses tool calls in a model's answer, by family

Knows tokenizers; knows nothing about engines, prompt files or HTTP. llguidance is imported only when it is used.
"""
