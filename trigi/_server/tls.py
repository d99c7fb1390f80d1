"""TLS: settings become an `ssl.SSLContext`, and a handshake that is done becomes the ASGI TLS extension.

This is the only module that imports `ssl`.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from pathlib import Path
from ssl import SSLContext
from typing import Any

import trio

from trigi._connection.tls_stream import TLSStream
from trigi.config import Config
from trigi.exceptions import ConfigError

__all__ = ["SSLContext", "TLSDescriber", "create_ssl_context", "prepare_ssl_context"]

ALPN_PROTOCOLS = ["h2", "http/1.1"]
"""What is spoken after the handshake, the preferred first (RFC 7301)."""

VERIFY_MODES = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}

WRONG_KEY = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}
"""What OpenSSL says of a key that is another certificate's: the last when even its kind is another."""

TLS_VERSIONS = {"TLSv1": 0x0301, "TLSv1.1": 0x0302, "TLSv1.2": 0x0303, "TLSv1.3": 0x0304}


# Contexts


def create_ssl_context(config: Config) -> SSLContext:
    """The context for `certfile`, which must be given, and the settings that go with it: TLS 1.2 or newer.

    Nobody is asked for a password on the terminal: the key's password is `keyfile_password`.

    Raises:
        ConfigError: a file can't be read or does not hold what it should, the key is another certificate's, its
            password is missing or wrong, or there are no such ciphers. One line, with the setting and the file.
    """
    assert config.certfile is not None, "without a certificate there is no TLS"
    context = SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    # A client of TLS 1.2 could have one handshake after the other computed on a single connection.
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load_certificates(SSLContext(ssl.PROTOCOL_TLS_CLIENT), "certfile", config.certfile)
    _load_key(context, config, config.certfile)
    if config.ca_certs is not None:
        _load_certificates(context, "ca_certs", config.ca_certs)
    if config.ciphers is not None:
        try:
            context.set_ciphers(config.ciphers)
        except ssl.SSLError as error:
            raise ConfigError(f"ciphers: {config.ciphers!r} names no cipher that OpenSSL knows") from error
    context.verify_mode = VERIFY_MODES[config.verify_mode]
    prepare_ssl_context(context)
    return context


def prepare_ssl_context(context: SSLContext) -> None:
    """Set on a context, whoever made it, the one thing that the server must decide: the ALPN protocols.

    Which protocols can be spoken is up to the server, and a context can't be asked what it would agree to. All
    else in a context of the caller's, versions, ciphers, certificates, verification, stays as it is.

    Raises:
        ConfigError: the context is for clients only.
    """
    if context.protocol is ssl.PROTOCOL_TLS_CLIENT:
        raise ConfigError("ssl_context: is for clients; a server's is made with ssl.PROTOCOL_TLS_SERVER")
    context.set_alpn_protocols(ALPN_PROTOCOLS)


def _load_certificates(context: SSLContext, setting: str, path: str) -> None:
    """Trust the certificates in a file."""
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise ConfigError(f"{setting}: {path} holds no certificates in PEM, or broken ones") from error
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from error


def _load_key(context: SSLContext, config: Config, certfile: str) -> None:
    """Load the certificate chain and its private key, which may be in the same file."""
    setting, keyfile = ("certfile", certfile) if config.keyfile is None else ("keyfile", config.keyfile)
    try:
        if b"PRIVATE KEY-----" not in Path(keyfile).read_bytes():
            raise ConfigError(f"{setting}: {keyfile} holds no private key in PEM")
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {keyfile}: {error.strerror}") from error
    asked = False

    def password() -> str:
        nonlocal asked
        asked = True
        if config.keyfile_password is None:
            raise ConfigError(f"keyfile_password: is needed for the private key in {keyfile}")
        return config.keyfile_password

    try:
        context.load_cert_chain(certfile, keyfile, password)
    except ConfigError:
        raise
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None)
        if reason in WRONG_KEY:
            raise ConfigError(
                f"{setting}: the private key in {keyfile} is not that of the certificate in {certfile}"
            ) from error
        if asked:
            raise ConfigError(f"keyfile_password: is not that of the private key in {keyfile}") from error
        raise ConfigError(
            f"{setting}: OpenSSL can't use {certfile} with the private key in {keyfile}: {reason or 'broken'}"
        ) from error


# The TLS extension


class TLSDescriber:
    """Gives the ASGI TLS extension, version 0.2, of a connection whose handshake is done.

    Args:
        certfile: the file whose first certificate the server shows, in PEM; `None` if that is not known, because
            the context is the caller's. It is read here, and not again.
    """

    def __init__(self, certfile: str | None) -> None:
        self._server_cert = None if certfile is None else _first_certificate(certfile)
        self._cipher_suites: dict[str, int] = {}

    def __call__(self, stream: trio.abc.Stream) -> dict[str, Any] | None:
        """The value of `scope["extensions"]["tls"]`; `None` if the stream does not speak TLS.

        The client's chain is as the client sent it, from Python 3.13 on; before, it is the client's own certificate.
        `client_cert_error` is always `None`: a client whose certificate is not accepted is not let in.

        Raises:
            trio.NeedHandshakeError: the handshake is not done.
        """
        if isinstance(stream, TLSStream):
            tls = stream.tls
        elif isinstance(stream, trio.SSLStream):
            stream.cipher()  # raises, if the handshake is not done
            tls = stream._ssl_object  # noqa: SLF001 - it does not pass on all that is asked of it here
        else:
            return None
        client = tls.getpeercert(binary_form=True)
        return {
            "server_cert": self._server_cert,
            "client_cert_chain": [] if client is None else _client_chain(tls, client),
            "client_cert_name": None if client is None else distinguished_name(_subject(tls)),
            "client_cert_error": None,
            "tls_version": TLS_VERSIONS.get(tls.version() or ""),
            "cipher_suite": self._cipher_suite(tls),
        }

    def _cipher_suite(self, tls: ssl.SSLObject) -> int | None:
        """IANA's number of the cipher suite: the low 16 bits of OpenSSL's."""
        agreed = tls.cipher()
        assert agreed is not None  # the handshake is done
        if agreed[0] not in self._cipher_suites:
            self._cipher_suites |= {
                cipher["name"]: cipher["id"] & 0xFFFF for cipher in tls.context.get_ciphers()
            }
        return self._cipher_suites.get(agreed[0])


def _first_certificate(certfile: str) -> str | None:
    """The first certificate in a file, which OpenSSL takes for the server's own, alone and in PEM."""
    text = Path(certfile).read_bytes().decode("latin-1")  # there may be comments, in whatever encoding
    found = re.search("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)
    return found and ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(found[0]))


def _client_chain(tls: ssl.SSLObject, leaf: bytes) -> list[str]:
    # Python has this method from 3.13 on, and a resumed TLS session may not have kept the chain.
    get_chain = getattr(tls, "get_unverified_chain", list)
    return [ssl.DER_cert_to_PEM_cert(certificate) for certificate in get_chain() or [leaf]]


def _subject(tls: ssl.SSLObject) -> Any:
    certificate = tls.getpeercert()
    assert certificate is not None  # the client has shown one
    return certificate["subject"]


# The client's name: the subject of its certificate as a string (RFC 4514)

SHORT_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}
"""OpenSSL's names of the attribute types that RFC 4514, section 3, has short names for."""


def distinguished_name(subject: Iterable[Iterable[tuple[str, str]]]) -> str:
    """A subject as RFC 4514 has it: `CN=Ada,O=Engines+OU=Analytical,C=GB`, the last RDN first.

    Other attribute types than those of `SHORT_NAMES` go by OpenSSL's name for them: `emailAddress=ada@example.com`.

    Args:
        subject: as `ssl.SSLSocket.getpeercert()` gives it: RDNs, of pairs of type and value.
    """
    rdns = [
        "+".join(f"{SHORT_NAMES.get(kind, kind)}={escaped(value)}" for kind, value in rdn) for rdn in subject
    ]
    return ",".join(reversed(rdns))


def escaped(text: str) -> str:
    """A value with those characters escaped that mean something in a distinguished name (RFC 4514, 2.4)."""
    text = re.sub(r'(["+,;<>\\]|^[ #]| \Z)', r"\\\1", text)
    return text.replace("\0", r"\00")
