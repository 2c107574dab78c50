"""Models behind an OpenAI-compatible HTTP endpoint.

    endpoint   where it is and how it may be used
    payload    a prompt as the body of a request, the body of a response as an answer
    http       one request over a kept connection, with a deadline for all of it
    pacing     how fast requests may go, and how long to wait before the next try
    client     rows in, an answer or a reason for each out

Knows nothing about Beam; never imports mindspore.
"""

from inference.remote.client import Client, RemoteAnswer, RemoteFailure
from inference.remote.endpoint import Endpoint

__all__ = ["Client", "Endpoint", "RemoteAnswer", "RemoteFailure"]
