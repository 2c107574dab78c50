"""Starts the ranks of a parallel run and stands over them: what one process does in a terminal, N do.

`arguments` reads the command line, `supervision` starts processes through msrun and ends them, `worker` is what msrun
runs in the place of the command, `logs` copies and shows what the ranks say, `main` is all of it. Never imports
mindspore.
"""

# Tells the ranks how they were started: a line for the shell, in which `{}` stands for the command.
RELAUNCH = "INFERENCE_RELAUNCH"
