"""What pyproject.toml cannot say: one module is in C, and the package works without it."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "twinckpt.checkpointer._streaming",
            ["src/twinckpt/checkpointer/streaming.c"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
