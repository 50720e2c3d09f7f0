# SPDX-License-Identifier: GPL-3.0-or-later
"""Run-pre matching: where the functions and data of compiled objects lie in a stripped binary.

A function is located where its whole body is consistent with exactly one address, and where there
is evidence of that beyond a likeness that others may share:

- ``exported``: the dynamic symbol table says so;
- ``reference``: located code or data refers to it there (a relocation says the name);
- ``body``: no other piece has such a body, no other function could be that piece, there is enough
  of it to tell it from others (LEAST_WEIGHT), and in the end located code refers to it there or its
  located neighbours are as near as they should be (a function into which another was inlined may
  look just like that other one);
- ``order``: it lies between its located neighbours, one for one.

Data are located by references alone, where all of them agree and section, alignment and initial
content fit. Evidence that contradicts other evidence is thrown out with everything that rests on
it, and the search begins anew without it: what is left is unresolved, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from wfpatch_build.candidates import Candidate, Candidates, Implied, Node
from wfpatch_build.code_order import CodeOrder, Owners
from wfpatch_build.compiled_object import CompiledObject
from wfpatch_build.definitions import Definition, Definitions
from wfpatch_build.object_file import ObjectFile

LEAST_WEIGHT = 16
# Of contradicting references the fewer are thrown out when they are so much fewer; else all are.
MAJORITY = 10


@dataclass(frozen=True)
class Matching:
    """``functions`` and ``data``: definition -> stock address (for thread-local data: offset from
    the thread pointer); ``evidence`` says why, ``unresolved`` why not. ``alike``: function -> where
    code is like it, whatever is known of other symbols."""

    image: ObjectFile
    definitions: Definitions
    functions: Mapping[Definition, int]
    data: Mapping[Definition, int]
    evidence: Mapping[Definition, str]
    unresolved: Mapping[Definition, str]
    alike: Mapping[Definition, Collection[int]]


@dataclass
class _Thrown:
    """What earlier searches found contradictory: functions and data not to be located, nodes about
    which references disagree, and where the functions were that their neighbours speak against."""

    definitions: set[Definition] = field(default_factory=set)
    disputed: set[Node] = field(default_factory=set)
    doubtful: dict[Definition, int] = field(default_factory=dict)


def match(
    image: ObjectFile, objects: Sequence[CompiledObject], use_exports: bool = True
) -> Matching:
    """Locate what ``objects`` (in link order) define in ``image``, which may be stripped.

    Without ``use_exports`` the names that the image itself exports are left unused: a program that
    exports everything (-rdynamic) then shows what matching can do without.
    """
    definitions = Definitions(objects)
    candidates = Candidates(image, definitions, use_exports)
    thrown = _Thrown()
    while True:
        search = _Search(candidates, thrown)
        search.run()
        if not search.throw_out():
            return search.result()


class _Search:
    """One search from nothing to where no evidence gives more."""

    def __init__(self, candidates: Candidates, thrown: _Thrown) -> None:
        self.candidates = candidates
        self.definitions = candidates.definitions
        self.thrown = thrown
        self.order = CodeOrder(candidates.image.pieces, self.definitions)
        self.functions: dict[Definition, int] = {}
        self.data: dict[Definition, int] = {}
        self.evidence: dict[Definition, str] = {}
        self.occupied: dict[int, Definition] = {}
        # What located code and data say: node -> address -> those that say it.
        self.told: dict[Node, dict[int, set[Definition]]] = {}
        self.told_at: dict[int, set[Node]] = {}
        self.possible = {
            f: self._where_exported(f, found)
            for f, found in candidates.of_function.items()
            if f not in thrown.definitions
        }
        self.claimants: dict[int, set[Definition]] = {}
        for function, found in candidates.of_function.items():
            for address in found:
                self.claimants.setdefault(address, set()).add(function)

    # -- the search -------------------------------------------------------------------------------

    def run(self) -> None:
        self._exported()
        while self._by_reference() or self._data() or self._by_body() or self._by_order():
            pass

    def _exported(self) -> None:
        for function, found in self.possible.items():
            address = self.candidates.exported(function)
            if address in found:
                self._locate(function, found[address], "exported")
        for datum in self.definitions.data:
            address = self.candidates.exported(datum)
            if address is not None:
                self._tell(datum, address, datum)

    def _where_exported(
        self, function: Definition, found: Mapping[int, Candidate]
    ) -> dict[int, Candidate]:
        """An exported function is nowhere else, whatever is like it."""
        address = self.candidates.exported(function)
        return {a: c for a, c in found.items() if address in (None, a)}

    def _by_reference(self) -> bool:
        """Locate functions that located code or data names, and whose body is there."""
        before = len(self.functions)
        pending = list(self.possible)
        while pending:
            function = pending.pop()
            if function in self.functions or function not in self.possible:
                continue
            told = self.told.get(function, {})
            fitting = [a for a in told if a in self.possible[function] and self._free(function, a)]
            if len(fitting) == 1:
                candidate = self.possible[function][fitting[0]]
                self._locate(function, candidate, "reference")
                pending += [i.node for i in candidate.implied if isinstance(i.node, Definition)]
        return len(self.functions) > before

    def _data(self) -> bool:
        before = len(self.data)
        for datum in self.definitions.data:
            told = self.told.get(datum, {})
            if datum in self.data or len(told) != 1 or self._thrown_out(datum):
                continue
            (address,) = told
            candidate = self.candidates.datum_at(datum, address)
            if candidate is not None:
                self.data[datum] = address
                exported = self.candidates.exported(datum) == address
                self.evidence[datum] = "exported" if exported else "reference"
                self._tell_all(datum, candidate)
        return len(self.data) > before

    def _by_body(self) -> bool:
        """Locate functions that can be in one place only, which can be no other function's."""
        before = len(self.functions)
        owners = self.order.owners(self.functions)
        viable = {
            function: self._viable(function, owners)
            for function in self.possible
            if function not in self.functions
        }
        for function, addresses in viable.items():
            if len(addresses) != 1 or self.told.get(function):
                continue
            (address,) = addresses
            if self._contested(function, address, viable):
                continue
            if self.candidates.weight(function) >= LEAST_WEIGHT:
                self._locate(function, self.possible[function][address], "body")
        return len(self.functions) > before

    def _by_order(self) -> bool:
        before = len(self.functions)
        for gap in list(self.order.gaps(self.functions)):
            for function, address in zip(gap.functions, gap.addresses, strict=True):
                candidate = self.possible.get(function, {}).get(address)
                if candidate is None or function in self.functions or self.told.get(function):
                    continue
                if self._free(function, address) and self._agrees(candidate):
                    self._locate(function, candidate, "order")
        return len(self.functions) > before

    # -- judging a candidate ----------------------------------------------------------------------

    def _thrown_out(self, node: Node) -> bool:
        return node in self.thrown.definitions or node in self.thrown.disputed

    def _free(self, function: Definition, address: int) -> bool:
        """Whether nothing else is located at ``address``, nor named there with a body that fits."""
        if self.occupied.get(address, function) is not function:
            return False
        return not any(
            isinstance(other, Definition)
            and other is not function
            and address in self.candidates.of_function.get(other, {})
            for other in self.told_at.get(address, ())
        )

    def _agrees(self, candidate: Candidate) -> bool:
        """Whether what follows from a candidate contradicts nothing that is located or told."""
        for implied in candidate.implied:
            node = implied.node
            known = self.functions.get(node) if isinstance(node, Definition) else None
            if known is None and isinstance(node, Definition):
                known = self.data.get(node)
            if known is not None and known != implied.address:
                return False
            told = self.told.get(node)
            if known is None and told and implied.address not in told:
                return False
            if self._occupied_by_another(implied):
                return False
        return True

    def _occupied_by_another(self, implied: Implied) -> bool:
        owner = self.occupied.get(implied.address)
        return owner is not None and owner is not implied.node

    def _viable(self, function: Definition, owners: Owners) -> set[int]:
        """The addresses at which the function may be. What located code says of others counts only
        where it decides between several: a single place that contradicts it is for throw_out()."""
        hard = {
            address
            for address in self.possible[function]
            if self._free(function, address) and owners.allows(function, address)
        }
        if len(hard) == 1:
            return hard
        return {address for address in hard if self._agrees(self.possible[function][address])}

    def _contested(
        self, function: Definition, address: int, viable: Mapping[Definition, set[int]]
    ) -> bool:
        """Whether the piece may be another function's, or code calls it by another name."""
        if any(other is not function for other in self.told_at.get(address, ())):
            return True
        return any(
            other is not function
            and other not in self.functions
            and (other not in viable or address in viable[other])
            for other in self.claimants[address]
        )

    # -- what is known ----------------------------------------------------------------------------

    def _locate(self, function: Definition, candidate: Candidate, evidence: str) -> None:
        self.functions[function] = candidate.address
        self.occupied[candidate.address] = function
        self.evidence[function] = evidence
        self._tell_all(function, candidate)

    def _tell_all(self, teller: Definition, candidate: Candidate) -> None:
        for implied in candidate.implied:
            if implied.node is not teller:
                self._tell(implied.node, implied.address, teller)

    def _tell(self, node: Node, address: int, teller: Definition) -> None:
        self.told.setdefault(node, {}).setdefault(address, set()).add(teller)
        self.told_at.setdefault(address, set()).add(node)

    # -- contradictions ---------------------------------------------------------------------------

    def throw_out(self) -> bool:
        """Find what contradicts itself, and throw it out; False when nothing does."""
        size = len(self.thrown.definitions) + len(self.thrown.disputed)
        for node, told in self.told.items():
            if node in self.functions:
                self._called_elsewhere(node, told)
            elif len(told) > 1:
                self._dispute(node, told)
        for address, nodes in self.told_at.items():
            owner = self.occupied.get(address)
            for node in nodes:
                if owner is not None and node is not owner and not self._is_data(node):
                    self.thrown.definitions |= self.told[node][address]
        self._overlaps()
        self._unsupported()
        strays = self.order.strays(self.functions)
        if len(strays) * MAJORITY <= len(self.functions):
            self.thrown.definitions |= strays
        return len(self.thrown.definitions) + len(self.thrown.disputed) > size

    def _called_elsewhere(self, node: Node, told: Mapping[int, set[Definition]]) -> None:
        """A function is like the one piece, and code says that it is another: it changed, and took
        the likeness of what is there, or that code changed and means another function."""
        assert isinstance(node, Definition)
        place = self.functions[node]
        here = told.get(place, set())
        elsewhere = {t for address, tellers in told.items() if address != place for t in tellers}
        if self.evidence[node] != "exported" and len(here) < MAJORITY * len(elsewhere):
            self.thrown.definitions.add(node)
            if here:
                self.thrown.definitions |= here | elsewhere
        else:
            self.thrown.definitions |= elsewhere

    @staticmethod
    def _is_data(node: Node) -> bool:
        return isinstance(node, Definition) and not node.is_function

    def _dispute(self, node: Node, told: Mapping[int, set[Definition]]) -> None:
        """References disagree, and no body decides: the node stays unresolved, and so do those
        who say what few say; where there is no clear majority, all of them."""
        self.thrown.disputed.add(node)
        ranked = sorted(told, key=lambda address: len(told[address]))
        most = len(told[ranked[-1]])
        rest = sum(len(told[address]) for address in ranked[:-1])
        for address in ranked[:-1] if most >= MAJORITY * rest else ranked:
            self.thrown.definitions |= told[address]

    def _unsupported(self) -> None:
        """Body alone does not do where the order of the code speaks against it. A function thrown
        out for that still counts as a neighbour: else one after the other would have to go."""
        neighbours = {**self.thrown.doubtful, **self.functions}
        for function in self.order.unsupported(neighbours) & self.functions.keys():
            if self.evidence[function] == "body" and not self.told.get(function):
                self.thrown.doubtful[function] = self.functions[function]
                self.thrown.definitions.add(function)

    def _overlaps(self) -> None:
        """No two data share bytes."""
        ordered = sorted(
            (d for d in self.data if not d.is_thread_local and d.size), key=lambda d: self.data[d]
        )
        for one, two in zip(ordered, ordered[1:], strict=False):
            if self.data[two] < self.data[one] + one.size:
                said = {one: self.told[one][self.data[one]], two: self.told[two][self.data[two]]}
                self.thrown.disputed |= {one, two}
                fewer = min(said, key=lambda d: len(said[d]))
                more = two if fewer is one else one
                self.thrown.definitions |= said[fewer]
                if len(said[more]) < MAJORITY * len(said[fewer]):
                    self.thrown.definitions |= said[more]

    # -- the outcome ------------------------------------------------------------------------------

    def result(self) -> Matching:
        everything: Iterable[Definition] = (*self.definitions.functions, *self.definitions.data)
        reasons: dict[Definition, str] = {}
        explain: Callable[[Definition], str]
        for definition in everything:
            if definition in self.functions or definition in self.data:
                continue
            explain = self._why_not_code if definition.is_function else self._why_not_data
            reasons[definition] = explain(definition)
        return Matching(
            self.candidates.image,
            self.definitions,
            self.functions,
            self.data,
            self.evidence,
            reasons,
            self.candidates.of_function,
        )

    def _why_not_code(self, function: Definition) -> str:
        if function in self.thrown.doubtful:
            return "one piece of the stock binary is like it, but its neighbours are not beside it"
        if function in self.thrown.definitions:
            return "its references contradict those of other code"
        found = self.candidates.of_function.get(function, {})
        if not found:
            return "no code of the stock binary is like it"
        if len(found) > 1:
            return f"{len(found)} pieces of the stock binary are like it, and nothing decides"
        return "one piece of the stock binary is like it, but there is too little evidence"

    def _why_not_data(self, datum: Definition) -> str:
        if self._thrown_out(datum):
            return "what located code says of its place is contradictory"
        if not self.told.get(datum):
            return "no located code refers to it"
        return "it does not fit where located code says it is"
