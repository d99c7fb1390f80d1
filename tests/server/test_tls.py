"""TLS: contexts made of settings, what is refused and in which words, and the TLS extension of real handshakes."""

from __future__ import annotations

import datetime as dt
import ssl
import sys
import tempfile
from typing import NamedTuple

import pytest
import trio
import trio.testing
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from hypothesis import assume, given
from hypothesis import strategies as st

from trigi._server.tls import (
    ALPN_PROTOCOLS,
    TLSDescriber,
    create_ssl_context,
    distinguished_name,
    prepare_ssl_context,
)
from trigi.config import Config
from trigi.exceptions import ConfigError

CA = trustme.CA()
CA_KEY = serialization.load_pem_private_key(CA.private_key_pem.bytes(), None)
CA_CERT = x509.load_pem_x509_certificate(CA.cert_pem.bytes())
SERVER = CA.issue_cert("server.example")
KEY = ec.generate_private_key(ec.SECP256R1())


class Files(NamedTuple):
    """Paths of a certificate chain, its key, both together, and the authority."""

    cert: str
    key: str
    both: str
    ca: str


@pytest.fixture
def files(tmp_path) -> Files:
    contents = {
        "cert": b"".join(pem.bytes() for pem in SERVER.cert_chain_pems),
        "key": SERVER.private_key_pem.bytes(),
        "both": SERVER.private_key_and_cert_chain_pem.bytes(),
        "ca": CA.cert_pem.bytes(),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.pem").write_bytes(content)
    return Files(*(str(tmp_path / f"{name}.pem") for name in contents))


def refusal(**settings) -> str:
    with pytest.raises(ConfigError) as caught:
        create_ssl_context(Config(**settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def certificate(subject: x509.Name) -> bytes:
    """A certificate for that subject, in DER, signed by the authority of this file, for `KEY`."""
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(CA_CERT.subject)
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
    )
    return builder.sign(CA_KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def decoded(der: bytes) -> tuple[tuple[tuple[str, str], ...], ...]:
    """A certificate's subject as `getpeercert()` gives it, without a handshake."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(ssl.DER_cert_to_PEM_cert(der))
        file.flush()
        return ssl._ssl._test_decode_cert(file.name)["subject"]


def encrypted_key(password: bytes, form: serialization.PrivateFormat) -> bytes:
    key = serialization.load_pem_private_key(SERVER.private_key_pem.bytes(), None)
    return key.private_bytes(
        serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(password)
    )


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    return context


async def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[trio.SSLStream, trio.SSLStream]:
    """Both ends of a connection after a handshake and a byte in either direction."""
    client_end, server_end = trio.testing.memory_stream_pair()
    client_stream = trio.SSLStream(client_end, client, server_hostname="server.example")
    server_stream = trio.SSLStream(server_end, server, server_side=True)

    async def answer() -> None:
        await server_stream.do_handshake()
        await server_stream.send_all(await server_stream.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        await client_stream.send_all(b"x")
        assert await client_stream.receive_some() == b"x"
    return server_stream, client_stream


# Contexts


@pytest.mark.parametrize("together", [False, True])
async def test_certificate_and_key_in_one_file_or_two(files, together):
    settings = {"certfile": files.both} if together else {"certfile": files.cert, "keyfile": files.key}
    server, client = await handshake(create_ssl_context(Config(**settings)), client_context())
    assert client.version() == server.version() == "TLSv1.3"


async def test_http_1_1_is_agreed_on_by_alpn(files):
    client = client_context()
    client.set_alpn_protocols(["something", "http/1.1"])
    server_stream, _ = await handshake(create_ssl_context(Config(certfile=files.both)), client)
    assert server_stream.selected_alpn_protocol() == "http/1.1"


async def test_tls_1_2_is_spoken_and_nothing_older(files):
    server = create_ssl_context(Config(certfile=files.both))
    client = client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    _, client_stream = await handshake(server, client)
    assert client_stream.version() == "TLSv1.2"
    assert server.minimum_version == ssl.TLSVersion.TLSv1_2
    assert server.options & ssl.OP_NO_RENEGOTIATION


async def test_ciphers_are_those_of_the_settings(files):
    server = create_ssl_context(Config(certfile=files.both, ciphers="ECDHE-ECDSA-AES128-GCM-SHA256"))
    client = client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    server_stream, _ = await handshake(server, client)
    assert server_stream.cipher()[0] == "ECDHE-ECDSA-AES128-GCM-SHA256"


@pytest.mark.parametrize(
    "form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL]
)
async def test_an_encrypted_key_is_opened_with_its_password(files, tmp_path, form):
    path = tmp_path / "encrypted.pem"
    path.write_bytes(encrypted_key(b"open sesame", form))
    config = Config(certfile=files.cert, keyfile=str(path), keyfile_password="open sesame")
    await handshake(create_ssl_context(config), client_context())

    assert refusal(certfile=files.cert, keyfile=str(path), keyfile_password="open") == (
        f"keyfile_password: is not that of the private key in {path}"
    )
    assert refusal(certfile=files.cert, keyfile=str(path), keyfile_password="x" * 2000) == (
        f"keyfile_password: is not that of the private key in {path}"
    )
    # not asked for on the terminal either
    assert refusal(certfile=files.cert, keyfile=str(path)) == (
        f"keyfile_password: is needed for the private key in {path}"
    )


async def test_clients_are_asked_for_certificates_as_told(files):
    ca = {"ca_certs": files.ca}
    with_certificate = client_context()
    CA.issue_cert("client.example").configure_cert(with_certificate)
    none = create_ssl_context(Config(certfile=files.both))
    optional = create_ssl_context(Config(certfile=files.both, verify_mode="optional", **ca))
    required = create_ssl_context(Config(certfile=files.both, verify_mode="required", **ca))

    server, _ = await handshake(none, with_certificate)
    assert server.getpeercert(binary_form=True) is None
    for context in (optional, required):
        server, _ = await handshake(context, with_certificate)
        assert server.getpeercert(binary_form=True) is not None
    server, _ = await handshake(optional, client_context())
    assert server.getpeercert(binary_form=True) is None
    await assert_refused(required, client_context())


async def test_a_certificate_of_another_authority_is_refused(files):
    client = client_context()
    trustme.CA().issue_cert("client.example").configure_cert(client)
    await assert_refused(
        create_ssl_context(Config(certfile=files.both, verify_mode="optional", ca_certs=files.ca)), client
    )


async def assert_refused(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """The server's side of the handshake fails."""
    client_end, server_end = trio.testing.memory_stream_pair()
    client_stream = trio.SSLStream(client_end, client, server_hostname="server.example")
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await client_stream.receive_some()

        async with trio.SSLStream(server_end, server, server_side=True) as server_stream:
            with pytest.raises(trio.BrokenResourceError):
                await server_stream.do_handshake()


@pytest.mark.parametrize("setting", ["certfile", "keyfile", "ca_certs"])
def test_a_file_that_is_not_there(files, tmp_path, setting):
    path = str(tmp_path / "missing.pem")
    settings = {"certfile": files.cert, "keyfile": files.key, "ca_certs": files.ca, "verify_mode": "optional"}
    said = refusal(**settings | {setting: path})
    assert said == f"{setting}: cannot read {path}: No such file or directory"


@pytest.mark.parametrize("setting", ["certfile", "keyfile", "ca_certs"])
def test_a_file_that_is_a_folder(files, tmp_path, setting):
    settings = {"certfile": files.cert, "keyfile": files.key, "ca_certs": files.ca, "verify_mode": "optional"}
    assert refusal(**settings | {setting: str(tmp_path)}).startswith(f"{setting}: cannot read {tmp_path}: ")


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n"],
    ids=["empty", "no PEM", "broken"],
)
@pytest.mark.parametrize("setting", ["certfile", "ca_certs"])
def test_a_file_without_certificates(files, tmp_path, setting, content):
    path = tmp_path / "wrong.pem"
    path.write_bytes(content)
    settings = {"certfile": files.cert, "keyfile": files.key, "ca_certs": files.ca, "verify_mode": "optional"}
    said = refusal(**settings | {setting: str(path)})
    assert said == f"{setting}: {path} holds no certificates in PEM, or broken ones"


def test_a_file_without_a_key(files, tmp_path):
    path = tmp_path / "wrong.pem"
    path.write_bytes(b"hello")
    assert refusal(certfile=files.cert, keyfile=str(path)) == f"keyfile: {path} holds no private key in PEM"
    assert refusal(certfile=files.cert) == f"certfile: {files.cert} holds no private key in PEM"


def test_a_broken_key(files, tmp_path):
    path = tmp_path / "broken.pem"
    path.write_bytes(b"-----BEGIN PRIVATE KEY-----\naGVsbG8=\n-----END PRIVATE KEY-----\n")
    said = refusal(certfile=files.cert, keyfile=str(path))
    assert said.startswith(f"keyfile: OpenSSL can't use {files.cert} with the private key in {path}: ")


@pytest.mark.parametrize("kind", [trustme.KeyType.ECDSA, trustme.KeyType.RSA])
def test_the_key_of_another_certificate(files, tmp_path, kind):
    path = tmp_path / "other.pem"
    path.write_bytes(CA.issue_cert("other.example", key_type=kind).private_key_pem.bytes())
    said = refusal(certfile=files.cert, keyfile=str(path))
    assert said == f"keyfile: the private key in {path} is not that of the certificate in {files.cert}"


def test_ciphers_that_there_are_not(files):
    said = refusal(certfile=files.both, ciphers="ROT13")
    assert said == "ciphers: 'ROT13' names no cipher that OpenSSL knows"


async def test_of_a_context_of_the_callers_only_the_alpn_protocols_are_set():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    SERVER.configure_cert(context)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    context.set_alpn_protocols(["something-else"])
    before = (context.options, context.minimum_version, context.verify_mode, context.get_ciphers())
    prepare_ssl_context(context)
    assert (context.options, context.minimum_version, context.verify_mode, context.get_ciphers()) == before

    client = client_context()
    client.set_alpn_protocols(["something-else", *ALPN_PROTOCOLS])
    server_stream, _ = await handshake(context, client)
    assert server_stream.version() == "TLSv1.2"
    assert server_stream.selected_alpn_protocol() == ALPN_PROTOCOLS[0]


def test_a_context_for_clients_is_refused():
    with pytest.raises(ConfigError, match="is for clients"):
        prepare_ssl_context(ssl.create_default_context())


# The TLS extension


@pytest.mark.parametrize(
    ("version", "number", "suites"),
    [
        (ssl.TLSVersion.TLSv1_2, 0x0303, {"ECDHE-ECDSA-AES128-GCM-SHA256": 0xC02B}),
        (
            ssl.TLSVersion.TLSv1_3,
            0x0304,
            {
                "TLS_AES_128_GCM_SHA256": 0x1301,
                "TLS_AES_256_GCM_SHA384": 0x1302,
                "TLS_CHACHA20_POLY1305_SHA256": 0x1303,
            },
        ),
    ],
)
async def test_a_connection_without_a_client_certificate(files, version, number, suites):
    client = client_context()
    client.minimum_version = client.maximum_version = version
    client.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    stream, client_stream = await handshake(create_ssl_context(Config(certfile=files.both)), client)
    shown = ssl.DER_cert_to_PEM_cert(client_stream.getpeercert(binary_form=True))
    assert TLSDescriber(files.both)(stream) == {
        "server_cert": shown,
        "client_cert_chain": [],
        "client_cert_name": None,
        "client_cert_error": None,
        "tls_version": number,
        "cipher_suite": suites[stream.cipher()[0]],
    }


async def test_the_server_certificate_is_the_leaf_of_a_chain_with_comments(tmp_path):
    leaf = CA.create_child_ca().issue_cert("server.example")
    path = tmp_path / "chain.pem"
    path.write_bytes("Schlüssel und Zertifikate\n".encode() + leaf.private_key_and_cert_chain_pem.bytes())
    stream, client_stream = await handshake(create_ssl_context(Config(certfile=str(path))), client_context())
    shown = ssl.DER_cert_to_PEM_cert(client_stream.getpeercert(binary_form=True))
    assert TLSDescriber(str(path))(stream)["server_cert"] == shown == leaf.cert_chain_pems[0].bytes().decode()


async def test_the_certificate_of_a_context_of_the_callers_is_not_known(files):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    SERVER.configure_cert(context)
    stream, _ = await handshake(context, client_context())
    described = TLSDescriber(None)(stream)
    assert described["server_cert"] is None
    assert described["tls_version"] == 0x0304


async def test_the_file_is_read_once(files, tmp_path):
    describe = TLSDescriber(files.both)
    stream, _ = await handshake(create_ssl_context(Config(certfile=files.both)), client_context())
    expected = describe(stream)
    (tmp_path / "both.pem").write_text("renewed")
    assert describe(stream) == expected


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_certificate(files, version):
    leaf = CA.issue_cert("client.example", common_name="client.example", organization_name="A, B + C")
    client = client_context()
    client.minimum_version = client.maximum_version = version
    leaf.configure_cert(client)
    server = create_ssl_context(Config(certfile=files.both, verify_mode="required", ca_certs=files.ca))
    stream, _ = await handshake(server, client)
    described = TLSDescriber(files.both)(stream)
    pem = leaf.cert_chain_pems[0].bytes()
    assert described["client_cert_chain"][0] == pem.decode()
    assert described["client_cert_name"] == x509.load_pem_x509_certificate(pem).subject.rfc4514_string()
    assert described["client_cert_name"].endswith(r"O=A\, B \+ C")
    assert described["client_cert_error"] is None


async def test_a_client_certificate_with_its_chain(files):
    leaf = CA.create_child_ca().issue_cert("client.example")
    client = client_context()
    leaf.configure_cert(client)
    server = create_ssl_context(Config(certfile=files.both, verify_mode="required", ca_certs=files.ca))
    stream, _ = await handshake(server, client)
    chain = [pem.bytes().decode() for pem in leaf.cert_chain_pems]
    assert len(chain) == 2
    # before Python 3.13 only the first certificate can be asked for
    expected = chain if sys.version_info >= (3, 13) else chain[:1]
    assert TLSDescriber(files.both)(stream)["client_cert_chain"] == expected


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_resumed_session_has_the_client_certificate_too(files, version):
    leaf = CA.create_child_ca().issue_cert("client.example")
    client = client_context()
    client.minimum_version = client.maximum_version = version
    leaf.configure_cert(client)
    server = create_ssl_context(Config(certfile=files.both, verify_mode="required", ca_certs=files.ca))
    describe = TLSDescriber(files.both)
    first, first_client = await handshake(server, client)

    client_end, server_end = trio.testing.memory_stream_pair()
    second = trio.SSLStream(server_end, server, server_side=True)
    second_client = trio.SSLStream(client_end, client, server_hostname="server.example")
    second_client.session = first_client.session
    async with trio.open_nursery() as nursery:
        nursery.start_soon(second.do_handshake)
        await second_client.do_handshake()
    assert second.session_reused
    assert describe(second)["client_cert_chain"][0] == describe(first)["client_cert_chain"][0]
    assert describe(second)["client_cert_name"] == describe(first)["client_cert_name"]


async def test_cipher_suites_are_known_of_every_context(files):
    describe = TLSDescriber(files.both)
    for name, number in (
        ("ECDHE-ECDSA-AES128-GCM-SHA256", 0xC02B),
        ("ECDHE-ECDSA-AES256-GCM-SHA384", 0xC02C),
    ):
        context = create_ssl_context(Config(certfile=files.both, ciphers=name))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        stream, _ = await handshake(context, client_context())
        assert describe(stream)["cipher_suite"] == number


async def test_other_streams_have_no_extension(files):
    stream, _ = trio.testing.memory_stream_pair()
    assert TLSDescriber(files.both)(stream) is None


async def test_before_the_handshake_there_is_nothing_to_describe(files):
    _, end = trio.testing.memory_stream_pair()
    stream = trio.SSLStream(end, create_ssl_context(Config(certfile=files.both)), server_side=True)
    with pytest.raises(trio.NeedHandshakeError):
        TLSDescriber(files.both)(stream)


# Distinguished names


def name(*rdns: dict | list) -> x509.Name:
    """A name of RDNs: dictionaries, or lists of attributes."""
    made = [
        rdn if isinstance(rdn, list) else [x509.NameAttribute(oid, value) for oid, value in rdn.items()]
        for rdn in rdns
    ]
    return x509.Name([x509.RelativeDistinguishedName(rdn) for rdn in made])


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (name(), ""),
        (
            name(
                {NameOID.COUNTRY_NAME: "GB"},
                {NameOID.ORGANIZATION_NAME: "Engines"},
                {NameOID.COMMON_NAME: "Ada"},
            ),
            "CN=Ada,O=Engines,C=GB",
        ),
        (
            name(
                {NameOID.DOMAIN_COMPONENT: "net"},
                {NameOID.DOMAIN_COMPONENT: "example"},
                {NameOID.ORGANIZATIONAL_UNIT_NAME: "Sales", NameOID.COMMON_NAME: "J.  Smith"},
            ),
            "OU=Sales+CN=J.  Smith,DC=example,DC=net",  # within an RDN the order is DER's
        ),
        (name({NameOID.COMMON_NAME: 'James "Jim" Smith, III'}), r"CN=James \"Jim\" Smith\, III"),
        (name({NameOID.COMMON_NAME: "Before\rAfter"}), "CN=Before\rAfter"),
        (name({NameOID.COMMON_NAME: " # "}), "CN=\\ #\\ "),
        (name({NameOID.COMMON_NAME: " "}), "CN=\\ "),
        (name({NameOID.COMMON_NAME: "#hash\0nul"}), r"CN=\#hash\00nul"),
        (name({NameOID.COMMON_NAME: "space before newline \n"}), "CN=space before newline \n"),
        (name({NameOID.COMMON_NAME: "Lučić 🦆"}), "CN=Lučić 🦆"),
        (name([x509.NameAttribute(NameOID.COMMON_NAME, "Lučić", _ASN1Type.BMPString)]), "CN=Lučić"),
        (name([x509.NameAttribute(NameOID.COMMON_NAME, "🦆", _ASN1Type.UniversalString)]), "CN=🦆"),
        (
            name({NameOID.COMMON_NAME: "Ada"}, {NameOID.EMAIL_ADDRESS: "ada@example.com"}),
            "emailAddress=ada@example.com,CN=Ada",
        ),
        (name({x509.ObjectIdentifier("2.999.16384.1"): "x"}), "2.999.16384.1=x"),
    ],
)
def test_distinguished_names(subject, expected):
    assert distinguished_name(decoded(certificate(subject))) == expected


SPECIAL = ' "#+,;<=>\\\0\n'
TEXT = st.text(SPECIAL + "aZ0\x7fü€字\u202e\uffff🦆", min_size=1, max_size=16)
ASCII = st.text(SPECIAL + "aZ0\x7f", min_size=1, max_size=16)
VALUES = {
    NameOID.COMMON_NAME: TEXT,
    NameOID.LOCALITY_NAME: TEXT,
    NameOID.STATE_OR_PROVINCE_NAME: TEXT,
    NameOID.ORGANIZATION_NAME: TEXT,
    NameOID.ORGANIZATIONAL_UNIT_NAME: TEXT,
    NameOID.STREET_ADDRESS: TEXT,
    NameOID.DOMAIN_COMPONENT: ASCII,
    NameOID.USER_ID: TEXT,
}
RDN = st.fixed_dictionaries({}, optional=VALUES).filter(bool)


@given(st.lists(RDN))
def test_distinguished_names_are_those_of_cryptography(rdns):
    # of a single space cryptography escapes the escape
    assume(all(value != " " for rdn in rdns for value in rdn.values()))
    certified = certificate(name(*rdns))
    assert (
        distinguished_name(decoded(certified))
        == x509.load_der_x509_certificate(certified).subject.rfc4514_string()
    )
