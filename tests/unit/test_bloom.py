"""Tags set exactly the bits that every other program on the bus expects of them."""

from __future__ import annotations

import pytest

from busproxy.bloom import all_bits, siphash, tag_bits, to_bytes
from kdbus_core.domain import Bloom

USUAL = Bloom(64, 8)

KNOWN = {
    "interface:org.freedesktop.DBus": (419, 384, 90, 1, 317, 249, 417, 474),
    "member:NameOwnerChanged": (289, 108, 414, 301, 234, 125, 244, 433),
    "message-type:signal": (388, 108, 102, 383, 132, 138, 312, 309),
    "path:/org/freedesktop/DBus": (281, 246, 377, 301, 215, 27, 143, 494),
    "path-slash-prefix:/": (163, 298, 112, 257, 171, 260, 48, 403),
    "arg0:foobar": (13, 4, 232, 128, 14, 116, 404, 168),
    "arg0-dot-prefix:org.freedesktop": (176, 295, 276, 179, 109, 194, 43, 134),
    "arg1:foobar": (11, 411, 413, 86, 471, 430, 307, 205),
    "arg0-has:foobar": (329, 67, 367, 71, 239, 59, 59, 459),
}


def positions(bits: int) -> set[int]:
    return {position for position in range(bits.bit_length()) if bits >> position & 1}


def test_the_hash_is_siphash_2_4_as_its_authors_published_it() -> None:
    assert siphash(bytes(range(16)), bytes(range(15))) == 0xA129CA6149BE45E5


@pytest.mark.parametrize(
    ("length", "hashed"), [(0, 0x726FDB47DD0E0E31), (7, 0xAB0200F58B01D137), (8, 0x93F5F5799A932462)]
)
def test_texts_of_less_than_a_word_and_of_a_whole_one_are_hashed_as_published(
    length: int, hashed: int
) -> None:
    assert siphash(bytes(range(16)), bytes(range(length))) == hashed


@pytest.mark.parametrize("tag", KNOWN)
def test_a_tag_sets_its_eight_bits_of_512(tag: str) -> None:
    assert positions(tag_bits(USUAL, tag.encode())) == set(KNOWN[tag])


def test_a_filter_of_64_bits_takes_one_byte_for_an_index() -> None:
    assert positions(tag_bits(Bloom(8, 1), b"interface:org.freedesktop.DBus")) == {21}


def test_twenty_hashes_of_4096_bits_take_several_keys() -> None:
    found = positions(tag_bits(Bloom(512, 20), b"interface:org.freedesktop.DBus"))
    assert {1443, 2944, 602, 2561, 317, 2297} <= found
    assert 18 <= len(found) <= 20


def test_indexes_stay_in_a_filter_whose_size_is_no_power_of_two() -> None:
    for text in range(200):
        assert max(positions(tag_bits(Bloom(24, 8), str(text).encode()))) < 24 * 8


def test_bit_b_is_bit_b_mod_8_of_byte_b_div_8() -> None:
    filter = to_bytes(USUAL, tag_bits(USUAL, b"arg0:foobar"))
    assert {8 * at + bit for at in range(64) for bit in range(8) if filter[at] >> bit & 1} == set(
        KNOWN["arg0:foobar"]
    )


@pytest.mark.parametrize("text", [b"", b"a", b"org.freedesktop.DBus", b"x" * 300])
def test_prefixes_hashed_in_one_pass_are_hashed_as_they_are_alone(text: bytes) -> None:
    lengths = sorted({0, len(text) // 2, len(text) // 3, len(text)})
    alone = 0
    for length in lengths:
        alone |= tag_bits(USUAL, text[:length])
    assert tag_bits(USUAL, text, lengths) == alone


def test_without_enough_keys_a_tag_has_no_bits_and_every_filter_contains_it() -> None:
    assert tag_bits(Bloom(64, 33), b"member:Changed") == 0
    assert tag_bits(Bloom(64, 32), b"member:Changed") != 0


def test_the_filter_with_all_bits_is_all_ones() -> None:
    assert to_bytes(USUAL, all_bits(USUAL)) == b"\xff" * 64
