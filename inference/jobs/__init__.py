"""A job: rows in, answers out, nothing lost on the way.

`feed` reads ahead, `run` puts rows through the engine, `writer` formats and orders answers (`records` renders them),
`save_file` keeps the save file whole, `identity` decides whether a later run may resume it, `progress` and `figures`
report how the job is going. Knows nothing about command lines; no module here imports mindspore.
"""
