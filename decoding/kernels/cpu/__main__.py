"""`python -m decoding.kernels.cpu` compiles what a first start would compile, into the cache of whoever runs it."""

from __future__ import annotations

from decoding.kernels import cpu as kernels


def main() -> None:
    if kernels.available():
        from decoding.kernels.cpu.all_kernels import compile_all  # noqa: PLC0415 - needs numba

        compile_all()


if __name__ == "__main__":
    main()
