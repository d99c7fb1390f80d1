"""Frames: their form, their order, and that it does not matter in how many pieces they come."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trigi._protocol.http2_frames import (
    BLOCK_FRAMES_LIMIT,
    FRAME_SIZE,
    PREFACE,
    ErrorCode,
    Frame,
    FrameReader,
    FrameType,
    Violation,
    encode_frame,
)

SETTINGS = encode_frame(FrameType.SETTINGS, 0, 0)
END_STREAM, END_HEADERS, PADDED, PRIORITY = 0x1, 0x4, 0x8, 0x20


def read(data, **limits):
    """All frames, and the violation that ends them, if there is one."""
    reader = FrameReader(**limits)
    reader.receive_data(data)
    return read_all(reader)


def read_all(reader):
    frames = []
    try:
        while (frame := reader.next_frame()) is not None:
            frames.append(frame)
    except Violation as error:
        return frames, error.code
    return frames, None


def after_preface(*frames, **limits):
    found, violation = read(PREFACE + SETTINGS + b"".join(frames), **limits)
    assert found[0].type == FrameType.SETTINGS
    return found[1:], violation


def test_a_frame_is_encoded():
    assert encode_frame(FrameType.DATA, END_STREAM, 5, b"abc") == b"\0\0\3\0\1\0\0\0\5abc"
    assert encode_frame(FrameType.DATA, 0, 1, bytes(70_000))[:3] == b"\x01\x11\x70"


@pytest.mark.parametrize("sent", range(len(PREFACE)))
def test_an_incomplete_preface_is_waited_for(sent):
    reader = FrameReader()
    reader.receive_data(PREFACE[:sent])
    assert reader.next_frame() is None
    assert not reader.established


@pytest.mark.parametrize("wrong", range(len(PREFACE)))
def test_a_wrong_preface_is_refused_at_its_first_wrong_byte(wrong):
    bad = PREFACE[:wrong] + bytes([PREFACE[wrong] ^ 1])
    assert read(bad) == ([], ErrorCode.PROTOCOL_ERROR)


@pytest.mark.parametrize(
    "first",
    [
        encode_frame(FrameType.SETTINGS, 1, 0),
        encode_frame(FrameType.PING, 0, 0, bytes(8)),
        encode_frame(FrameType.HEADERS, END_HEADERS, 1, b"x"),
        encode_frame(77, 0, 0),
    ],
    ids=["acknowledgement", "PING", "HEADERS", "unknown"],
)
def test_settings_come_first(first):
    assert read(PREFACE + first) == ([], ErrorCode.PROTOCOL_ERROR)


def test_it_is_established_with_the_settings():
    reader = FrameReader()
    reader.receive_data(PREFACE + SETTINGS)
    assert reader.next_frame() == Frame(FrameType.SETTINGS, 0, 0, b"", 0)
    assert reader.established


SHAPES = [
    # type, stream, size, error
    (FrameType.DATA, 0, 1, ErrorCode.PROTOCOL_ERROR),
    (FrameType.HEADERS, 0, 1, ErrorCode.PROTOCOL_ERROR),
    (FrameType.PRIORITY, 0, 5, ErrorCode.PROTOCOL_ERROR),
    (FrameType.RST_STREAM, 0, 4, ErrorCode.PROTOCOL_ERROR),
    (FrameType.RST_STREAM, 1, 3, ErrorCode.FRAME_SIZE_ERROR),
    (FrameType.RST_STREAM, 1, 5, ErrorCode.FRAME_SIZE_ERROR),
    (FrameType.SETTINGS, 1, 6, ErrorCode.PROTOCOL_ERROR),
    (FrameType.SETTINGS, 0, 5, ErrorCode.FRAME_SIZE_ERROR),
    (FrameType.PUSH_PROMISE, 1, 8, ErrorCode.PROTOCOL_ERROR),
    (FrameType.PING, 1, 8, ErrorCode.PROTOCOL_ERROR),
    (FrameType.PING, 0, 7, ErrorCode.FRAME_SIZE_ERROR),
    (FrameType.PING, 0, 9, ErrorCode.FRAME_SIZE_ERROR),
    (FrameType.GOAWAY, 1, 8, ErrorCode.PROTOCOL_ERROR),
    (FrameType.GOAWAY, 0, 7, ErrorCode.FRAME_SIZE_ERROR),
    (FrameType.WINDOW_UPDATE, 0, 3, ErrorCode.FRAME_SIZE_ERROR),
    (FrameType.WINDOW_UPDATE, 1, 5, ErrorCode.FRAME_SIZE_ERROR),
    (FrameType.CONTINUATION, 1, 1, ErrorCode.PROTOCOL_ERROR),
    (FrameType.PRIORITY_UPDATE, 1, 4, ErrorCode.PROTOCOL_ERROR),
    (FrameType.PRIORITY_UPDATE, 0, 3, ErrorCode.FRAME_SIZE_ERROR),
]


@pytest.mark.parametrize(
    ("type_", "stream_id", "size", "code"),
    SHAPES,
    ids=[f"{type_.name}, stream {stream_id}, {size} bytes" for type_, stream_id, size, _ in SHAPES],
)
def test_a_wrong_form_is_refused_at_the_ninth_byte(type_, stream_id, size, code):
    header = encode_frame(type_, 0, stream_id, bytes(size))[:9]
    assert after_preface(header) == ([], code)


@pytest.mark.parametrize("type_", [*FrameType, 77])
def test_a_frame_too_large_is_refused_before_it_comes(type_):
    stream_id = 1 if type_ in (FrameType.DATA, FrameType.HEADERS) else 0
    _, violation = after_preface(encode_frame(type_, 0, stream_id, bytes(FRAME_SIZE + 1))[:9])
    assert violation in (ErrorCode.FRAME_SIZE_ERROR, ErrorCode.PROTOCOL_ERROR)
    if type_ != FrameType.CONTINUATION:
        assert violation is ErrorCode.FRAME_SIZE_ERROR


def test_the_largest_frame_is_taken():
    [frame], violation = after_preface(encode_frame(FrameType.DATA, 0, 1, bytes(FRAME_SIZE)))
    assert (len(frame.payload), violation) == (FRAME_SIZE, None)


def test_an_acknowledgement_is_empty():
    assert after_preface(encode_frame(FrameType.SETTINGS, 1, 0, bytes(6))) == ([], ErrorCode.FRAME_SIZE_ERROR)


def test_the_reserved_bit_is_ignored():
    [frame], _ = after_preface(encode_frame(FrameType.DATA, 0, 1 | 1 << 31, b"x"))
    assert frame.stream_id == 1


def test_unknown_frames_are_given():
    [frame], violation = after_preface(encode_frame(77, 0xFF, 9, b"abc"))
    assert (frame, violation) == (Frame(77, 0xFF, 9, b"abc", 3), None)


def padded(payload, padding):
    return bytes([padding]) + payload + bytes(padding)


@pytest.mark.parametrize("padding", [0, 1, 255])
def test_padding_is_taken_off_and_counted(padding):
    [frame], _ = after_preface(encode_frame(FrameType.DATA, PADDED, 1, padded(b"abc", padding)))
    assert (frame.payload, frame.size) == (b"abc", 4 + padding)


@pytest.mark.parametrize("type_", [FrameType.DATA, FrameType.HEADERS])
@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", ErrorCode.FRAME_SIZE_ERROR),
        (b"\1", ErrorCode.PROTOCOL_ERROR),
        (b"\4abc", ErrorCode.PROTOCOL_ERROR),
        (b"\xffabc", ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_padding_longer_than_the_frame(type_, payload, code):
    assert after_preface(encode_frame(type_, PADDED | END_HEADERS, 1, payload)) == ([], code)


def test_nothing_but_padding():
    [frame], _ = after_preface(encode_frame(FrameType.DATA, PADDED, 1, b"\3\0\0\0"))
    assert (frame.payload, frame.size) == (b"", 4)


def test_the_priority_in_headers_is_taken_off():
    payload = struct.pack(">LB", 3, 15) + b"block"
    for flags, data in ((PRIORITY, payload), (PRIORITY | PADDED, padded(payload, 7))):
        [frame], _ = after_preface(encode_frame(FrameType.HEADERS, flags | END_HEADERS, 1, data))
        assert frame.payload == b"block"


@pytest.mark.parametrize("exclusive", [0, 1 << 31])
def test_a_stream_does_not_depend_on_itself(exclusive):
    payload = struct.pack(">LB", 5 | exclusive, 15)
    frame = encode_frame(FrameType.HEADERS, PRIORITY | END_HEADERS, 5, payload)
    assert after_preface(frame) == ([], ErrorCode.PROTOCOL_ERROR)


def test_no_room_for_the_priority():
    frame = encode_frame(FrameType.HEADERS, PRIORITY | END_HEADERS, 1, bytes(4))
    assert after_preface(frame) == ([], ErrorCode.FRAME_SIZE_ERROR)


def block(*parts, stream_id=1, flags=END_STREAM):
    """A field block in several frames."""
    frames = [encode_frame(FrameType.HEADERS, flags, stream_id, parts[0])]
    frames += [encode_frame(FrameType.CONTINUATION, 0, stream_id, part) for part in parts[1:-1]]
    return b"".join([*frames, encode_frame(FrameType.CONTINUATION, END_HEADERS, stream_id, parts[-1])])


def test_a_field_block_is_one_frame():
    [frame], _ = after_preface(block(b"ab", b"", b"c", b"de"))
    assert frame == Frame(FrameType.HEADERS, END_STREAM | END_HEADERS, 1, b"abcde", 5)


@pytest.mark.parametrize(
    "between",
    [
        encode_frame(FrameType.DATA, 0, 1, b"x"),
        encode_frame(FrameType.PING, 0, 0, bytes(8)),
        encode_frame(FrameType.HEADERS, END_HEADERS, 1),
        encode_frame(FrameType.CONTINUATION, END_HEADERS, 3),
        encode_frame(FrameType.CONTINUATION, END_HEADERS, 0),
        encode_frame(77, 0, 1),
    ],
    ids=["DATA", "PING", "HEADERS", "of another stream", "of the connection", "unknown"],
)
def test_nothing_comes_between_the_frames_of_a_block(between):
    begun = encode_frame(FrameType.HEADERS, 0, 1, b"ab")
    assert after_preface(begun, between) == ([], ErrorCode.PROTOCOL_ERROR)


def test_a_block_is_bounded_in_bytes():
    assert after_preface(block(b"12345", b"67890"), block_size_limit=10)[1] is None
    assert after_preface(block(b"12345", b"678901"), block_size_limit=10) == ([], ErrorCode.ENHANCE_YOUR_CALM)


def test_a_block_is_bounded_in_frames():
    most = [b""] * BLOCK_FRAMES_LIMIT
    assert after_preface(block(*most))[1] is None
    assert after_preface(block(*most, b"")) == ([], ErrorCode.ENHANCE_YOUR_CALM)


def test_a_block_is_open_from_its_beginning_to_its_end():
    reader = FrameReader()
    data = block(b"ab", b"cd") + encode_frame(FrameType.HEADERS, END_HEADERS, 3)
    second = len(data) - 9
    reader.receive_data(PREFACE + SETTINGS + encode_frame(FrameType.DATA, 0, 1, b"x"))
    read_all(reader)
    for position in range(len(data)):
        reader.receive_data(data[position : position + 1])
        read_all(reader)
        if 3 <= position < second - 1:
            assert reader.open_block == 0
        elif second + 3 <= position < len(data) - 1:
            assert reader.open_block == 1
        else:
            assert reader.open_block is None


valid_frames = st.one_of(
    st.builds(
        lambda data, flags: encode_frame(FrameType.DATA, flags, 1, data),
        st.binary(max_size=50),
        st.sampled_from([0, END_STREAM]),
    ),
    st.builds(
        lambda data, padding: encode_frame(FrameType.DATA, PADDED, 1, padded(data, padding)),
        st.binary(max_size=20),
        st.integers(0, 20),
    ),
    st.builds(lambda parts: block(*parts), st.lists(st.binary(max_size=20), min_size=2, max_size=5)),
    st.builds(
        lambda type_, data: encode_frame(type_, 0, 0, data), st.integers(17, 255), st.binary(max_size=30)
    ),
)


@given(frames=st.lists(valid_frames, max_size=6), junk=st.binary(max_size=30), data=st.data())
def test_any_split_gives_the_same_frames(frames, junk, data):
    whole = PREFACE + SETTINGS + b"".join(frames) + junk
    expected = read(whole)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=10)))
    reader = FrameReader()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        reader.receive_data(whole[start:end])
        some, violation = read_all(reader)
        found += some
        if violation is not None:
            break
    assert (found, violation) == expected
