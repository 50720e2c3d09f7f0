# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a named datum of a compiled object can lie at an address of the stock object."""

from __future__ import annotations

from wfpatch_build.code_comparison import Claim, CodeComparison, CodeDiffers
from wfpatch_build.compiled_object import SHT_NOBITS
from wfpatch_build.definitions import Definition


def data_claims(comparison: CodeComparison, datum: Definition, address: int) -> list[Claim]:
    """What the words of ``datum`` say of other symbols if it lies at ``address``.

    Raises CodeDiffers where section, alignment or initial content do not fit. Thread-local data
    is only checked for its bounds.
    """
    image = comparison.image
    if datum.is_thread_local:
        if not 0 <= image.thread_local_value(address) <= image.thread_local_size - datum.size:
            raise CodeDiffers(0, f"{address} is no thread-local variable of {datum.size} bytes")
        return []
    place = image.section_at(address)
    if place is None or address + datum.size > place.address + place.size or place.executable:
        raise CodeDiffers(0, f"{address:#x} is in no section that holds {datum.size} bytes of data")
    own = datum.section
    if own is None:  # the linker gives it room in .bss, aligned as st_value says
        if place.type != "SHT_NOBITS" or address % max(1, datum.symbol.value):
            raise CodeDiffers(0, f"{address:#x} is no place for a variable without initial value")
        return []
    start = datum.symbol.value
    alignment = own.alignment if not start else min(own.alignment, start & -start)
    if address % alignment:
        raise CodeDiffers(0, f"{address:#x} is not aligned to {alignment}")
    if own.writable != place.writable or (own.type == SHT_NOBITS) != (place.type == "SHT_NOBITS"):
        raise CodeDiffers(0, f"{address:#x} is in {place.name}, not the like of {own.name}")
    if own.type == SHT_NOBITS:
        return []
    return comparison.data(own, start, start + datum.size, address)
