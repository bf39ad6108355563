"""The GPU's checksums are those of the host: its kernel is run by the host's compiler here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from twinckpt.checkpointer import kernels
from twinckpt.checkpointer.kernels import BLOCK_BYTES
from twinckpt.memory.checksums import CHUNK_BYTES, checksum

KERNEL = Path(kernels.__file__).parent


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    program = tmp_path_factory.mktemp("kernel") / "kernels_on_cpu"
    source = Path(__file__).with_name("kernels_on_cpu.cpp")
    options = ["-std=c++20", "-O1", "-pthread", "-I", KERNEL]
    subprocess.run([compiler, *options, source, "-o", program], check=True)
    return program


@pytest.mark.parametrize(
    ("num_chunks", "chunk_bytes"), [(5, BLOCK_BYTES), (3, 2 * BLOCK_BYTES), (2, 20 * BLOCK_BYTES)]
)
def test_the_kernel_gives_the_checksums_that_a_seal_has(program, num_chunks, chunk_bytes):
    data = os.urandom(num_chunks * chunk_bytes)
    command = [program, str(num_chunks), str(chunk_bytes // BLOCK_BYTES)]
    printed = subprocess.run(command, input=data, capture_output=True, check=True).stdout
    assert bytes.fromhex(printed.decode()) == checksum(memoryview(data), chunk_bytes)


def test_a_seals_chunks_are_whole_blocks():
    assert CHUNK_BYTES % BLOCK_BYTES == 0


@pytest.mark.parametrize("capability", ["80", "90"])
def test_the_kernels_are_compiled_where_there_is_no_gpu(capability):
    pytest.importorskip("cuda.bindings", reason="torch for CUDA brings it")
    binary = kernels.compiled(kernels._SOURCE.read_bytes(), capability)
    assert binary.startswith(b"\x7fELF")
    assert b"xxh3_64" in binary
    assert b"copy_all" in binary


def test_what_cannot_be_compiled_is_an_error():
    pytest.importorskip("cuda.bindings", reason="torch for CUDA brings it")
    with pytest.raises(RuntimeError, match="not compiled"):
        kernels.compiled(b"no CUDA", "90")
