"""Answers batches of rows with records: the part that all data engines (Beam, Ray, Spark) share.

    elements       converts elements of a pipeline to prompts
    columns        answers columns of a table, as Ray and Spark pass them
    shared_model   models that answer batches, one per config and process

Knows no data engine. The rows of a batch run together; one that fails does not affect the others.
"""
