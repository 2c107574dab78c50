"""The pool of blocks: all or nothing, nothing lost, and what is published stays found until its memory is needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.models.block_pool import BlockPool, chain


@given(st.integers(2, 20), st.integers(1, 8), st.lists(st.integers(0, 40), max_size=12))
def test_block_pool_grows_all_or_nothing(num_blocks: int, block_size: int, sizes: list[int]) -> None:
    pool = BlockPool(num_blocks, block_size)
    tables: list[list[int]] = []
    for size in sizes:
        table: list[int] = []
        free, needed = pool.num_free, -(-size // block_size)
        assert pool.grow(table, size) == (needed <= free)
        assert len(table) == (needed if needed <= free else 0)
        assert pool.num_free == free - len(table)
        tables.append(table)
    for table in tables:
        pool.release(table)
    assert pool.num_free == pool.capacity == num_blocks - 1
    assert pool.grow(everything := [], pool.capacity * block_size)
    assert sorted(everything) == list(range(1, num_blocks))


def test_a_cache_with_only_the_null_block_is_rejected() -> None:
    with pytest.raises(ValueError, match="null block"):
        BlockPool(1, 16)


def published(pool: BlockPool, *keys: bytes) -> list[int]:
    """A table of blocks under these hashes."""
    table: list[int] = []
    assert pool.grow(table, len(keys) * pool.block_size)
    for block, key in zip(table, keys, strict=True):
        pool.publish(block, key)
    return table


def test_a_published_block_is_found_until_it_is_needed() -> None:
    pool = BlockPool(5, 4)
    table = published(pool, b"a", b"b")
    blocks = list(table)
    assert pool.find([b"a", b"b", b"c"]) == blocks and pool.find([b"x", b"a"]) == []
    pool.release(table)
    assert pool.find([b"a", b"b"]) == blocks and pool.num_free == 4
    assert pool.grow(other := [], 12)
    assert pool.find([b"a", b"b"]) == blocks[:1], "the end goes before the beginning"
    assert blocks[1] in other and blocks[0] not in other


def test_a_block_is_freed_with_its_last_holder() -> None:
    pool = BlockPool(4, 4)
    first = published(pool, b"a")
    pool.hold(second := [], pool.find([b"a"]))
    pool.release(first)
    assert pool.is_held(second[0]) and pool.num_free == 2
    pool.release(second)
    assert pool.num_free == 3 and pool.find([b"a"])


def test_find_returns_one_of_two_equal_blocks() -> None:
    pool = BlockPool(4, 4)
    first, second = published(pool, b"a"), published(pool, b"a")
    assert pool.find([b"a"]) == first and pool.num_published == 1
    pool.release(second)
    pool.release(first)
    assert pool.num_free == 3 and pool.find([b"a"])


def test_forgotten_blocks_are_not_found_but_stay_usable() -> None:
    pool = BlockPool(5, 4)
    idle, held = published(pool, b"a", b"b"), published(pool, b"c")
    pool.release(idle)
    pool.forget()
    assert pool.find([b"a"]) == pool.find([b"c"]) == [] and pool.num_published == 0
    pool.release(held)
    assert pool.num_free == 4
    assert pool.grow([], 16)


@given(st.lists(st.integers(0, 3), min_size=8, max_size=8), st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_hashes_are_equal_if_the_whole_prefix_is(one: list[int], other: list[int]) -> None:
    def hashes(tokens: list[int]) -> list[bytes]:
        keys = [b""]
        for at in range(0, 8, 2):
            keys.append(chain(keys[-1], tokens[at : at + 2]))
        return keys[1:]

    alike = [one[: 2 * n] == other[: 2 * n] for n in range(1, 5)]
    assert [a == b for a, b in zip(hashes(one), hashes(other), strict=True)] == alike
