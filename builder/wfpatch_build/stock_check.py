# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares compiled old code with the stock binary, instruction by instruction.

This is run-pre matching with known addresses: it shows that a single object compiled by the
builder is what Debian's build linked, and that every symbol the code uses lies where the symbol
table says.
"""

from __future__ import annotations

from dataclasses import dataclass

from wfpatch_build.code_comparison import Claim, CodeComparison, CodeDiffers
from wfpatch_build.compiled_object import CompiledSymbol
from wfpatch_build.errors import Refusal
from wfpatch_build.normal_form import NormalForms
from wfpatch_build.stock import Stock
from wfpatch_build.stock_code import StockCode


@dataclass(frozen=True)
class Difference:
    """The first place where stock and compiled code part; offsets in the function."""

    function: str
    offset: int
    text: str

    def __str__(self) -> str:
        return f"{self.function}+{self.offset:#x}: {self.text}"


class StockCheck:
    """Checks functions of one compiled object against the stock object's ``unit``."""

    def __init__(self, stock: Stock, forms: NormalForms, unit: int | None) -> None:
        self.stock = stock
        self.unit = unit
        self._code = StockCode(stock.image)
        self._comparison = CodeComparison(self._code, forms)

    def function(self, symbol: CompiledSymbol) -> Difference | None:
        """The first difference of one function or cold part; None when there is none."""
        try:
            stock = self.stock.function(symbol.name, self.unit)
        except Refusal as unresolved:
            return Difference(symbol.name, 0, unresolved.message)
        if stock is None:
            return Difference(symbol.name, 0, "the stock binary has no such function")
        try:
            claims = self._comparison.claims(symbol, self._code.piece(stock.address, stock.size))
        except CodeDiffers as difference:
            return Difference(symbol.name, difference.offset, difference.text)
        for claim in claims:
            text = self._judge(claim)
            if text is not None:
                return Difference(symbol.name, claim.at, text)
        return None

    def _judge(self, claim: Claim) -> str | None:
        """None when the symbol table agrees with ``claim``, else what is wrong."""
        name = claim.reference.name
        try:
            symbol = self.stock.any(name, self.unit)
        except Refusal:
            return None  # matching left it unresolved: there is nothing to hold against the claim
        if symbol is None:
            return f"{name} is not in the stock binary"
        address = symbol.address
        if symbol.type == "STT_TLS":
            address = self.stock.image.thread_pointer_offset(address)
        if claim.address != address:
            return f"{name} at {claim.address:#x}, the symbol table says {address:#x}"
        return None
