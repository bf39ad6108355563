"""Checksums are the same whoever takes them."""

import os

import pytest

from twinckpt.memory.checksums import chunk_digest, chunk_digests, chunks


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
def test_threads_take_the_checksums_in_the_order_of_the_chunks(num_threads):
    found = list(chunks(memoryview(os.urandom(5 * 1000 + 7)), 1000))
    expected = [chunk_digest(chunk) for chunk in found]
    assert len(set(expected)) == 6
    assert chunk_digests(found, num_threads) == expected
