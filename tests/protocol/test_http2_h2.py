"""The compression: what is remembered of field sections never differs from what would come of them again."""

from __future__ import annotations

from hpack import Decoder, Encoder
from hypothesis import example, given
from hypothesis import strategies as st

from trigi._protocol.http2_h2 import KNOWN_BLOCK_SIZE, KNOWN_SECTIONS, _Decoder, _Encoder

fields = st.tuples(
    st.sampled_from([b":status", b"server", b"x-a", b"x-b", b"cookie"]),
    st.sampled_from([b"", b"1", b"200", b"v" * 50, b"w" * 300]),
)
sections = st.lists(fields, max_size=4)
sizes = st.sampled_from([0, 60, 100, 200, 4096])
steps = st.lists(st.one_of(sections, sizes), max_size=30)


@example([0, [], 60, 60, [(b"x-a", b"1"), (b"x-a", b"1")]])
@given(steps)
def test_any_decoder_reads_what_is_compressed(steps):
    encoder, decoder = _Encoder(), Decoder()
    for step in steps:
        if isinstance(step, int):
            encoder.header_table_size = step
            encoder.forget_changes()
        else:
            assert list(decoder.decode(encoder.encode(step), raw=True)) == step


@given(steps)
def test_what_any_encoder_compresses_is_read(steps):
    encoder, decoder = Encoder(), _Decoder(65536)
    for step in steps:
        if isinstance(step, int):
            if step != encoder.header_table_size:  # hpack would forget the change before it
                encoder.header_table_size = step
        else:
            decoder.decode(encoder.encode(step))
            assert decoder.fields == step


def test_a_section_is_compressed_once_while_the_memory_stays_as_it_is():
    encoder = _Encoder()
    section = [(b":status", b"200"), (b"server", b"trigi")]
    first, second = encoder.encode(section), encoder.encode(section)
    assert first != second  # from now on it is in the memory
    assert encoder.encode(section) is second
    encoder.encode([(b"date", b"now")])
    third = encoder.encode(section)
    assert third not in (first, second)
    assert encoder.encode(section) is third


def test_a_section_is_read_once_while_the_memory_stays_as_it_is():
    encoder, decoder = Encoder(), _Decoder(65536)
    section = [(b":method", b"GET"), (b"accept", b"*/*")]
    blocks = [encoder.encode(section) for _ in range(3)]
    read = []
    for block in blocks:
        decoder.decode(block)
        read.append(decoder.fields)
    assert read == [section] * 3
    assert read[2] is read[1] is not read[0]


def test_little_is_remembered():
    encoder = _Encoder()
    large = [(b":status", b"%d" % number) for number in range(100, 100 + KNOWN_BLOCK_SIZE)]
    encoder.encode(large)
    encoder.encode(large)
    assert encoder._known._sections == {}
    for number in range(2 * KNOWN_SECTIONS):
        encoder.encode([(b":status", b"200")] * (number + 1))
    assert len(encoder._known._sections) == KNOWN_SECTIONS


def test_a_section_that_was_too_large_for_the_memory_may_fit_later():
    """What it was compressed to is the same, and what becomes of the memory is not."""
    decoder = _Decoder(65536)
    literal = b"\x40\x03x-a\x011"  # RFC 7541, 6.2.1: to be remembered
    for block in (b"\x20" + literal, literal, literal, b"\x3f\xe1\x1f", literal, b"\xbe"):
        decoder.decode(block)
    assert decoder.fields == [(b"x-a", b"1")]
