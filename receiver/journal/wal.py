"""Damage of a SQLite WAL. SQLite itself leaves out the first damaged frame and all behind it, without an error.

Source: the WAL format in https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct

_HEADER, _FRAME_HEADER = struct.Struct(">8I"), struct.Struct(">6I")
_LITTLE_ENDIAN, _BIG_ENDIAN = 0x377F0682, 0x377F0683  # of the checksums
_WORD = 2**32
_MOST_GENERATIONS = 2**20


def is_damaged(wal: bytes) -> bool:
    """Whether frames that were written whole are no longer readable. A write that a crash cut short is no damage."""
    if len(wal) <= _HEADER.size or not wal.strip(b"\0"):
        return False
    magic, _, page_size, _, *salts, first, second = _HEADER.unpack_from(wal)
    checksum = _checksum(magic, wal[:24], (0, 0))
    if magic not in (_LITTLE_ENDIAN, _BIG_ENDIAN) or checksum != (first, second) or not page_size:
        return True
    unreadable = False
    frame_size = _FRAME_HEADER.size + page_size
    for at in range(_HEADER.size, len(wal) - frame_size + 1, frame_size):
        *_, salt, other_salt, first, second = _FRAME_HEADER.unpack_from(wal, at)
        # A frame of before the WAL was begun anew: the first salt is a count, the second is random. Where all bytes are
        # the same, it is damage that looks like one.
        if other_salt not in (salts[1], salt) and 0 < (salts[0] - salt) % _WORD < _MOST_GENERATIONS:
            return False  # at most the frame before it was being written
        if unreadable:
            return True
        checksum = _checksum(magic, wal[at : at + 8], checksum)
        checksum = _checksum(magic, wal[at + _FRAME_HEADER.size : at + frame_size], checksum)
        unreadable = [salt, other_salt, first, second] != [*salts, *checksum]
    return unreadable


def _checksum(magic: int, data: bytes, start: tuple[int, int]) -> tuple[int, int]:
    first, second = start
    words = struct.unpack(f"{'<' if magic == _LITTLE_ENDIAN else '>'}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) % _WORD
        second = (second + odd + first) % _WORD
    return first, second
