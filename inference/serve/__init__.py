"""The OpenAI-compatible server: requests over HTTP, answered by the one running engine.

    run          the lifecycle of a server: listen, load the model, answer, and finish running requests at shutdown
    listen       the address, the certificate and the key, checked before the model loads
    app          the routes: maps each path to its endpoint
    service      the model and the state shared by all requests
    bodies       parses a request's body into prompts and settings
    generation   starts and follows the rows of a request, and cancels them when the client disconnects
    inbox        carries items from the engine's thread to the event loop
    answers      answers in OpenAI's formats, whole and streamed
    responses    the answers of `/v1/responses`, on top of the chat
    embeddings   embedding vectors of texts
    limits       checks clients, body sizes and the number of waiting requests
    errors       errors in OpenAI's format
    metrics      metrics for Prometheus
    page         the chat page

Starlette and uvicorn are imported only here. Never imports mindspore at the top.
"""
