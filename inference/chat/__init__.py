"""Chat in the terminal: turns with history, answers that stream, commands.

    conversation   messages, system prompt and settings, and the file that keeps them
    turn           one answer under way, which can be stopped
    commands       what `/reset`, `/set` and the others do
    screen         how turns are read and answers are shown, on a terminal or through a pipe
    chat           the loop

Knows the API's LLM and terminals. prompt_toolkit is imported where a person types.
"""
