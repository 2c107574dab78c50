"""Chat in the terminal: turns with history, streamed answers, commands.

    conversation   messages, system prompt and settings, and the file that stores them
    turn           one answer in progress, which can be stopped
    commands       the commands: `/reset`, `/set` and others
    screen         reads turns and shows answers, on a terminal or through a pipe
    chat           the loop

Knows the API's LLM and terminals. prompt_toolkit is imported only for interactive input.
"""
