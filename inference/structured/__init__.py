"""Answers of a given form: JSON schemas, regular expressions, grammars, choices, and calls of tools.

    structure    what a setting asks for, as a grammar
    vocabulary   a tokenizer's tokens as bytes, as grammars need them
    constraint   which tokens a grammar allows next
    tools        tools of a request: which may be called, and the grammar of a call that must come
    tool_calls   calls in a model's answer, family by family

Knows tokenizers; knows nothing about engines, files of prompts or HTTP. llguidance is imported where it is used.
"""
