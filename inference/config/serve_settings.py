"""`serve` and `chat`: the keys of the server and of the terminal chat. Knows only their types and ranges."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inference.config.values import Bytes, Count, NonNegative, OptionalText, Positive, Section, Texts

Port = Annotated[int, Field(ge=0, le=65535)]


class ServeSettings(Section):
    """`serve`: the OpenAI-compatible server (`run_mode: serve`)."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 is every address of this machine.")
    port: Port = Field(8000, description="Port to listen on; 0 picks a free one and prints it.")
    api_key_env: OptionalText = Field(
        None, description="Environment variable that holds the key which clients must send."
    )
    allow_no_key: bool = Field(False, description="Listen on other addresses than loopback without a key.")
    model_name: Texts = Field((), description="Names that clients may call the model by; its own name if unset.")
    certificate: OptionalText = Field(None, description="PEM file of the TLS certificate; plain HTTP if unset.")
    certificate_key: OptionalText = Field(
        None, description="PEM file of its private key, if `certificate` does not hold it."
    )
    max_waiting: NonNegative = Field(
        256, description="Prompts that may wait beside those that run; a request beyond them gets status 429."
    )
    max_tokens: Count | None = Field(None, description="Most new tokens that a request may ask for.")
    max_samples: Count = Field(16, description="Most answers (`n`) that a request may ask for.")
    max_prompts: Count = Field(256, description="Most prompts in one request.")
    max_body: Bytes = Field(4 << 20, description="Longest body of a request: bytes, or a size such as 4MiB.")
    body_seconds: Positive = Field(30.0, description="Seconds in which a request's body must arrive.")
    shutdown_seconds: Positive = Field(
        30.0, description="Seconds that running requests have to finish after SIGTERM or Ctrl-C."
    )
    pooling: Literal["mean", "last"] = Field(
        "mean", description="What an embedding is made of: the mean of all tokens' states, or the last token's."
    )
    page: bool = Field(True, description="Show the chat page at `/`.")


class ChatSettings(Section):
    """`chat`: the terminal chat (`run_mode: chat`)."""

    system: OptionalText = Field(None, description="System prompt.")
    history_file: OptionalText = Field(None, description="File that the conversation is read from and kept in.")
    stats: bool = Field(False, description="Show figures after each answer.")
