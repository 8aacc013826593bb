from __future__ import annotations

from receiver.web.memory import BodyMemory, TokenBucket

MIB = 2**20
SMALL = 16 * 2**10


def test_token_bucket_is_emptied_and_filled() -> None:
    """A bucket gives its capacity at once, then only what has been filled in since, never more than its capacity."""
    now = 0.0
    bucket = TokenBucket(100, 2, lambda: now)
    assert [bucket.take(60), bucket.take(60), bucket.take(40), bucket.take(1)] == [True, False, True, False]
    now = 5.0
    assert [bucket.take(11), bucket.take(10)] == [False, True]
    bucket.give_back(7)
    assert [bucket.take(8), bucket.take(7)] == [False, True]
    now = 1e9
    assert [bucket.take(101), bucket.take(100)] == [False, True]


def room(memory: BodyMemory, length: int, *, is_stale: bool = False) -> int:
    """How many more bodies of this length there is room for, which they take."""
    count = 0
    while memory.take(length, is_stale=is_stale):
        count += 1
    return count


def test_all_bodies_have_one_bound() -> None:
    """Large bodies take three quarters of 64 MiB, small ones what is left; what is given back can be taken again."""
    memory = BodyMemory(MIB)
    assert room(memory, MIB) == 48
    assert room(memory, SMALL) == 1024
    assert room(memory, 1) == 0
    memory.give_back(SMALL)
    assert room(memory, SMALL) == 1


def test_stale_bodies_have_a_quarter() -> None:
    """Stale ones find room only while less than a quarter is taken, by whomever."""
    memory = BodyMemory(MIB)
    assert room(memory, MIB, is_stale=True) == 16
    assert room(memory, MIB) == 32
    assert room(memory, 1, is_stale=True) == 0


def test_a_few_of_the_largest_fit() -> None:
    """Where `max_body_bytes` is large the bound is larger, so that each kind of body finds room."""
    memory = BodyMemory(100 * MIB)
    assert room(memory, 100 * MIB, is_stale=True) == 1
    assert room(memory, 100 * MIB) == 2
