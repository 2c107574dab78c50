"""Models behind an OpenAI-compatible HTTP endpoint.

    endpoint   an endpoint's address and limits
    payload    builds request bodies, reads responses
    http       sends POST requests, each with one overall deadline
    pacing     rate limiting and backoff
    client     sends rows; returns an answer or a failure for each

Knows nothing about Beam; never imports mindspore.
"""

from inference.remote.client import Client, RemoteAnswer, RemoteFailure
from inference.remote.endpoint import Endpoint

__all__ = ["Client", "Endpoint", "RemoteAnswer", "RemoteFailure"]
