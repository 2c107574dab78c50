"""Models behind an OpenAI-compatible HTTP endpoint.

    endpoint   its address and limits
    payload    builds request bodies, reads responses
    http       POST requests, each with one deadline for all of it
    pacing     rate limit and backoff
    client     answers rows: an answer or a failure for each

Knows nothing about Beam; never imports mindspore.
"""

from inference.remote.client import Client, RemoteAnswer, RemoteFailure
from inference.remote.endpoint import Endpoint

__all__ = ["Client", "Endpoint", "RemoteAnswer", "RemoteFailure"]
