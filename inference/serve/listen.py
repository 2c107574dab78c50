"""A server's address, certificate and key, checked before anything is loaded.

Knows sockets and TLS; knows nothing about HTTP. Stores only a digest of the key, never the key itself.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import ipaddress
import os
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from inference.config import InferenceConfig
from inference.config.serve_settings import ServeSettings
from inference.errors import ConfigError, reason_of

BACKLOG = 1024


class Key:
    """The key that clients must send, compared in constant time."""

    def __init__(self, text: str):
        self._digest = hashlib.sha256(text.encode()).digest()

    def matches(self, text: str) -> bool:
        """Returns whether `text` is the key, in a time that does not depend on which characters differ."""
        return hmac.compare_digest(self._digest, hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest())


@dataclass
class Listener:
    """A bound socket with its key and TLS settings.

    Args:
        key: None if clients need none.
        tls: None for plain HTTP.
        loopback: only this machine can reach the socket.
    """

    socket: socket.socket
    key: Key | None
    tls: ssl.SSLContext | None
    loopback: bool
    host: str = field(default="")

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    @property
    def url(self) -> str:
        """The address as a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def listen(config: InferenceConfig) -> Listener:
    """Binds the port. Connections are accepted once a server runs on the socket.

    Raises:
        ConfigError: the key is missing, the certificate cannot be read, the address needs a key, or the port is in
            use.
    """
    key, tls = _key(config), _tls(config)
    host = config.serve.host
    loopback = _is_loopback(host)
    if key is None and not loopback and not config.serve.allow_no_key:
        raise ConfigError(
            f"{config.origin('serve.host')}: serve.host {host} can be reached from other machines, and there is no key",
            "name the key's variable with serve.api_key_env, or set serve.allow_no_key true",
        )
    return Listener(_bound(config.serve, config.origin("serve.port")), key, tls, loopback, host)


def _key(config: InferenceConfig) -> Key | None:
    variable = config.serve.api_key_env
    if variable is None:
        return None
    text = os.environ.get(variable, "")
    if not text.strip():
        raise ConfigError(
            f"{config.origin('serve.api_key_env')}: the environment variable {variable} is not set",
            f"put the key there: export {variable}=...",
        )
    if not (text.isascii() and text.isprintable()) or text != text.strip():
        raise ConfigError(f"the key in {variable} has characters that no header can hold", "take printable ASCII")
    return Key(text)


def _tls(config: InferenceConfig) -> ssl.SSLContext | None:
    certificate, key = config.serve.certificate, config.serve.certificate_key
    if certificate is None:
        if key is not None:
            raise ConfigError(f"{config.origin('serve.certificate_key')}: a key without serve.certificate")
        return None
    for name, path in (("certificate", certificate), ("certificate_key", key)):
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"{config.origin(f'serve.{name}')}: serve.{name} {path} is not a file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without this callback, an encrypted key would prompt for its password on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigError(
            f"{config.origin('serve.certificate')}: the certificate {certificate} cannot be used ({reason})",
            "give a PEM file with the certificate and its key, or the key as serve.certificate_key",
        ) from error
    return context


def _is_loopback(host: str) -> bool:
    """Returns whether an address is a loopback address."""
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _bound(settings: ServeSettings, origin: str) -> socket.socket:
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"serve.host '{host}' is not an address of this machine ({reason_of(error)})", "such as 127.0.0.1"
        ) from None
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # With SO_REUSEADDR two sockets can bind the same port, but only one can listen.
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"{origin}: port {port} of {host} is in use", "take another with --serve.port, or 0 for any free one"
            ) from None
        raise ConfigError(
            f"{origin}: cannot listen on {host}:{port} ({error.strerror})", "take another host or port"
        ) from None
    return bound
