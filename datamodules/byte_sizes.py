"""Sizes such as ``64MB`` in options."""

import re

from datamodules.errors import UserError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parsed_size(name: str, size: int | str, least: int = 1) -> int:
    """The bytes of a size: a number, or a number with a unit.

    Args:
        name: the name of the option in the error.
        size: such as 64000000, ``64MB`` (10**6 bytes) or ``64MiB`` (2**20).
        least: the smallest size that is allowed.

    Raises:
        UserError: it is no size, or too small.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", str(size))
    factor = _UNITS.get(found[2].upper()) if found else None
    if found is None or factor is None or float(found[1]) * factor < 1:
        raise UserError(f"{name} is {size}: give a number of bytes, or one with a unit, such as 64MB or 1GB.")
    if float(found[1]) * factor < least:
        raise UserError(f"{name} is {size}: give at least {least} bytes.")
    return int(float(found[1]) * factor)
