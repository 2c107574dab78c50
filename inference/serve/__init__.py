"""The OpenAI-compatible server: requests over HTTP, answered by the one running engine.

    run          the life of a server: it listens, loads the model, answers, and finishes what runs at its end
    listen       the address, the certificate and the key, checked before the model loads
    app          which path is answered by what
    service      the model and what all requests share
    bodies       a request's body as prompts and settings
    generation   the rows of a request: started, followed, and let go of when the client leaves
    inbox        from the engine's thread to the event loop
    answers      answers in OpenAI's forms, whole and streamed
    embeddings   vectors of texts
    limits       who may ask, how long a body may be, how many requests wait
    errors       errors in OpenAI's form
    metrics      figures for Prometheus
    page         the chat page

Starlette and uvicorn are imported only here. Never imports mindspore at the top.
"""
