"""The figures of part 3."""

import msgspec


class HttpLine(msgspec.Struct):
    """An operation with so many clients: requests a second in each round, and seconds of requests."""

    operation: str
    clients: int
    ours: list[float] = []
    bare: list[float] = []
    our_seconds: list[float] = []
    bare_seconds: list[float] = []
