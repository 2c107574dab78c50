"""Start the ranks of a parallel run and watch over them, so that N processes behave like one in a terminal.

`arguments` reads the command line, `processes` starts, reaps and kills processes, `supervision` runs the ranks, `logs`
copies and shows their output, `main` is the program. Never imports mindspore.
"""

# Tells the ranks how they were started: a shell command with `{}` in place of their own.
RELAUNCH = "INFERENCE_RELAUNCH"
