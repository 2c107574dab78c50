"""A job: rows in, answers out, nothing lost on the way.

`feed` reads ahead, `run` puts rows through the engine, `writer` brings answers into their form and order, `journal`
keeps the save file whole, `identity` tells whether a later run may go on with it, `progress` and `figures` tell how it
goes. Knows nothing about command lines; no module here imports mindspore.
"""
