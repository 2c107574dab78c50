"""A batch job: reads rows, answers them, and loses none.

`feed` reads ahead, `run` puts rows through the engine, `writer` formats and orders answers (`records` renders them),
`save_file` keeps the save file whole, `identity` decides whether a later run may resume it, `progress` and `figures`
report the job's progress. Knows nothing about command lines; no module here imports mindspore.
"""
