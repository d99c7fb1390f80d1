"""TLS: settings become an `ssl.SSLContext`, and a handshake that is done becomes the ASGI TLS extension.

This is the only module that imports `ssl`.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from ssl import SSLContext
from typing import Any, NamedTuple

import trio

from trigi.config import Config
from trigi.exceptions import ConfigError

__all__ = ["SSLContext", "TLSDescriber", "create_ssl_context", "prepare_ssl_context"]

ALPN_PROTOCOLS = ["http/1.1"]
"""What is spoken after the handshake, the preferred first: h2 will stand before it (RFC 7301)."""

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
        """The value of `scope["extensions"]["tls"]`; `None` if the stream is no `trio.SSLStream`.

        The client's chain is as the client sent it, from Python 3.13 on; before, it is the client's own certificate.
        `client_cert_error` is always `None`: a client whose certificate is not accepted is not let in.

        Raises:
            trio.NeedHandshakeError: the handshake is not done.
            ValueError: the client's certificate is not in DER, though OpenSSL took it.
        """
        if not isinstance(stream, trio.SSLStream):
            return None
        client = stream.getpeercert(binary_form=True)
        return {
            "server_cert": self._server_cert,
            "client_cert_chain": [] if client is None else _client_chain(stream, client),
            "client_cert_name": None if client is None else distinguished_name(client),
            "client_cert_error": None,
            "tls_version": TLS_VERSIONS.get(stream.version()),
            "cipher_suite": self._cipher_suite(stream),
        }

    def _cipher_suite(self, stream: trio.SSLStream[Any]) -> int | None:
        """IANA's number of the cipher suite: the low 16 bits of OpenSSL's."""
        name = stream.cipher()[0]
        if name not in self._cipher_suites:
            self._cipher_suites |= {
                cipher["name"]: cipher["id"] & 0xFFFF for cipher in stream.context.get_ciphers()
            }
        return self._cipher_suites.get(name)


def _first_certificate(certfile: str) -> str | None:
    """The first certificate in a file, which OpenSSL takes for the server's own, alone and in PEM."""
    text = Path(certfile).read_bytes().decode("latin-1")  # there may be comments, in whatever encoding
    found = re.search("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)
    return found and ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(found[0]))


def _client_chain(stream: trio.SSLStream[Any], leaf: bytes) -> list[str]:
    # SSLStream does not pass this method on, and a resumed TLS session may not have kept the chain.
    get_chain = getattr(stream._ssl_object, "get_unverified_chain", list)  # noqa: SLF001
    return [ssl.DER_cert_to_PEM_cert(certificate) for certificate in get_chain() or [leaf]]


# The client's name: the subject in its certificate (X.509, in DER), as a string (RFC 4514)

VERSION = 0xA0
"""The tag of a certificate's version, [0] in its grammar: the one field before the subject that may be missing."""

INDEFINITE = 0x80
"""A length that DER does not allow, and BER, from which it is taken, does."""

STRING_ENCODINGS = {
    0x0C: "utf-8",  # UTF8String
    0x13: "ascii",  # PrintableString
    0x14: "latin-1",  # TeletexString, in practice
    0x16: "ascii",  # IA5String
    0x1C: "utf-32-be",  # UniversalString
    0x1E: "utf-16-be",  # BMPString
}

SHORT_NAMES = {
    "2.5.4.3": "CN",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "STREET",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
}
"""RFC 4514, section 3: the attribute types that every reader of these strings knows by name."""


class Element(NamedTuple):
    """One element of DER (X.690): `encoding` is all of it, `content` what is in it, which may be elements."""

    tag: int
    content: bytes
    encoding: bytes


def distinguished_name(certificate: bytes) -> str:
    """The subject of a certificate as RFC 4514 has it: `CN=Ada,O=Engines+OU=Analytical,C=GB`, the last RDN first.

    Raises:
        ValueError: the certificate is not in DER.
    """
    (whole,) = elements(certificate)
    signed_part = next(elements(whole.content))
    fields = [field for field in elements(signed_part.content) if field.tag != VERSION]
    subject = fields[4]  # serial number, signature algorithm, issuer, validity, subject
    rdns = [
        "+".join(attribute(*elements(pair.content)) for pair in elements(rdn.content))
        for rdn in elements(subject.content)
    ]
    return ",".join(reversed(rdns))


def elements(der: bytes) -> Iterator[Element]:
    """The elements that stand one after the other."""
    start = 0
    while start < len(der):
        tag, length = der[start : start + 2]
        if length == INDEFINITE:
            raise ValueError("the certificate is not in DER")
        content = start + 2
        if length & 0x80:  # so many bytes of length follow
            content += length & 0x7F
            length = int.from_bytes(der[start + 2 : content])
        end = content + length
        yield Element(tag, der[content:end], der[start:end])
        start = end


def attribute(kind: Element, value: Element) -> str:
    """One attribute type and value (RFC 4514, sections 2.3 and 2.4)."""
    oid = object_identifier(kind.content)
    name = SHORT_NAMES.get(oid)
    encoding = STRING_ENCODINGS.get(value.tag)
    if name is not None and encoding is not None:
        try:
            return f"{name}={escaped(value.content.decode(encoding))}"
        except UnicodeDecodeError:
            pass
    return f"{name or oid}=#{value.encoding.hex()}"


def escaped(text: str) -> str:
    """A value with those characters escaped that mean something in a distinguished name (RFC 4514, 2.4)."""
    text = re.sub(r'(["+,;<>\\]|^[ #]| \Z)', r"\\\1", text)
    return text.replace("\0", r"\00")


def object_identifier(content: bytes) -> str:
    """An OID in dotted form: base 128, and the first two numbers in one (X.690, 8.19)."""
    numbers, number = [], 0
    for byte in content:
        number = number << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(number)
            number = 0
    root = min(numbers[0] // 40, 2)
    return ".".join(map(str, [root, numbers[0] - 40 * root, *numbers[1:]]))
