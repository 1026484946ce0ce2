"""An index of bloom masks: finds those that a filter contains without looking at most of the others.

A mask is one integer, and a filter contains it if each bit of the mask is set
in the filter.  A trie takes a mask as the rising sequence of its set bits: a
branch stands for the lowest bits that all masks below it have in common, and
its children differ in the bit that comes next, so that a child is worth a look
only if the filter has its bit.  A branch is made where masks part ways, not for
every bit, and a few masks live in a leaf together until it pays to tell them
apart; so there are never more branches than masks.

A subscriber may upload several generations of a mask, and a filter says which
one it was made for; the last one stands for all that come after it.  Therefore
`MaskIndex` has, for each length of upload, one trie a generation.

Removal leaves nothing behind: a leaf without masks goes, and so does a branch
that no longer tells anything apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

LEAF_SIZE = 4
"""How many different masks a leaf may hold."""

FEW = 4
"""Up to this many values under equal masks are kept in a tuple; mostly there is one, and a dict is big."""

# Values by mask; equal masks are compared with a filter once.
_Values = tuple[T, ...] | dict[T, None]
_Leaf = dict[int, _Values[T]]


def _with(values: _Values[T], value: T) -> _Values[T]:
    if isinstance(values, dict):
        values[value] = None
        return values
    return (*values, value) if len(values) < FEW else dict.fromkeys((*values, value))


def _without(values: _Values[T], value: T) -> _Values[T]:
    """The values but for one; KeyError when that is not among them."""
    if isinstance(values, dict):
        del values[value]
        return values
    if value not in values:
        raise KeyError(value)
    return tuple(other for other in values if other is not value)


MANY = 4
"""Masks of more generations are not indexed: each would cost that many places."""


class _Branch(Generic[T]):
    __slots__ = ("bits", "children", "here", "prefix", "required")

    def __init__(self, prefix: int, required: int) -> None:
        self.prefix = prefix  # the lowest bits of every mask below
        self.required = required  # bits that every mask below has, so at least the prefix
        self.bits = 0  # those bits of all children
        self.children: dict[int, _Branch[T] | _Leaf[T]] = {}  # by number of the bit after the prefix
        self.here: _Values[T] = ()  # under the mask that is no more than the prefix

    def adopt(self, bit: int, child: _Branch[T] | _Leaf[T]) -> None:
        self.children[bit.bit_length()] = child
        self.bits |= bit


def _branch(leaf: _Leaf[T]) -> _Branch[T]:
    """A branch that tells apart what was in a leaf, which has two masks or more."""
    some = next(iter(leaf))
    different = 0
    required = some
    for mask in leaf:
        different |= mask ^ some
        required &= mask
    branch: _Branch[T] = _Branch(some & (different & -different) - 1, required)
    leaves: dict[int, _Leaf[T]] = {}
    for mask, values in leaf.items():
        rest = mask ^ branch.prefix
        if rest:
            leaves.setdefault(rest & -rest, {})[mask] = values
        else:
            branch.here = values
    for bit, child in leaves.items():
        branch.adopt(bit, child)
    return branch


class MaskTrie(Generic[T]):
    """Values filed under masks, which are not negative; a value at most once under the same mask."""

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root: _Branch[T] | _Leaf[T] = {}

    def __bool__(self) -> bool:
        return bool(self._root)  # a branch is never empty

    def __len__(self) -> int:
        """How many branches and leaves there are, an empty root not counted; looks at all of them."""
        if not self._root:
            return 0
        return sum(1 for _ in self._nodes())

    def _nodes(self) -> Iterator[_Branch[T] | _Leaf[T]]:
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            yield node
            if not isinstance(node, dict):
                nodes.extend(node.children.values())

    def _put(self, parent: _Branch[T] | None, bit: int, node: _Branch[T] | _Leaf[T]) -> None:
        """Put a node where another one is: below `parent`, or at the root."""
        if parent is None:
            self._root = node
        else:
            parent.children[bit.bit_length()] = node

    def add(self, mask: int, value: T) -> None:
        """File a value."""
        parent: _Branch[T] | None = None
        above = 0  # the bit that leads from the parent here
        node = self._root
        while not isinstance(node, dict):
            rest = mask ^ node.prefix
            bit = rest & -rest
            if rest and bit <= node.prefix:
                # Not all of the prefix is in this mask, so they part ways before this branch.
                branch: _Branch[T] = _Branch(node.prefix & bit - 1, node.required)
                behind = node.prefix ^ branch.prefix
                branch.adopt(behind & -behind, node)
                self._put(parent, above, branch)
                node = branch
                continue
            node.required &= mask
            if not rest:
                node.here = _with(node.here, value)
                return
            child = node.children.get(bit.bit_length())
            if child is None:
                node.adopt(bit, {mask: (value,)})
                return
            parent, above, node = node, bit, child
        node[mask] = _with(node.get(mask, ()), value)
        if len(node) > LEAF_SIZE:
            self._put(parent, above, _branch(node))

    def remove(self, mask: int, value: T) -> None:
        """Take away a value that is filed under this mask; KeyError when it is not."""
        parent: _Branch[T] | None = None
        above = 0
        branch: _Branch[T] | None = None
        bit = 0
        node = self._root
        while not isinstance(node, dict):
            parent, above, branch = branch, bit, node
            rest = mask ^ node.prefix
            if not rest:
                node.here = _without(node.here, value)
                if not node.here:
                    self._tidy(parent, above, node)
                return
            bit = rest & -rest
            node = node.children[bit.bit_length()]
        values = _without(node[mask], value)
        if values:
            node[mask] = values
            return
        del node[mask]
        if not node and branch is not None:
            del branch.children[bit.bit_length()]
            branch.bits ^= bit
            self._tidy(parent, above, branch)

    def _tidy(self, parent: _Branch[T] | None, above: int, branch: _Branch[T]) -> None:
        """Put what is left in a branch in its place when it tells nothing apart any more."""
        if not branch.children:
            self._put(parent, above, {branch.prefix: branch.here})
        elif not branch.here and len(branch.children) == 1:
            (child,) = branch.children.values()
            self._put(parent, above, child)

    def find(self, filter: int) -> list[Iterable[T]]:
        """The values under every mask that this filter contains; those of equal masks together."""
        found: list[Iterable[T]] = []
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            if isinstance(node, dict):
                for mask, values in node.items():
                    if mask & filter == mask:
                        found.append(values)
                continue
            required = node.required
            if required & filter != required:
                continue
            if node.here:
                found.append(node.here)
            children = node.children
            inside = node.bits & filter
            while inside:
                bit = inside & -inside
                inside ^= bit
                nodes.append(children[bit.bit_length()])
        return found


class MaskIndex(Generic[T]):
    """Values filed under masks of one or more generations.

    Senders send the same signals again and again, so it `remembers` what it has found for that many filters,
    until a mask comes or goes.
    """

    __slots__ = ("_found", "_long", "_remembers", "_tries")

    def __init__(self, *, remembers: int = 0) -> None:
        self._remembers = remembers
        self._found: dict[tuple[int, int], list[Iterable[T]]] = {}
        # By number of generations; each value is in all tries of its number.
        self._tries: dict[int, tuple[MaskTrie[T], ...]] = {}
        # Masks of more generations than pay for tries of their own, looked at one by one.
        self._long: dict[T, tuple[int, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self._tries) or bool(self._long)

    def __len__(self) -> int:
        """How many nodes there are; looks at all of them."""
        return sum(len(trie) for tries in self._tries.values() for trie in tries)

    def add(self, generations: tuple[int, ...], value: T) -> None:
        """File a value under its mask, the oldest generation first; there is at least one."""
        self._found.clear()
        if len(generations) > MANY:
            self._long[value] = generations
            return
        tries = self._tries.get(len(generations))
        if tries is None:
            tries = self._tries[len(generations)] = tuple(MaskTrie() for _ in generations)
        for trie, mask in zip(tries, generations, strict=True):
            trie.add(mask, value)

    def remove(self, generations: tuple[int, ...], value: T) -> None:
        """Take a value away; KeyError when it is not filed under this mask."""
        self._found.clear()
        if len(generations) > MANY:
            del self._long[value]
            return
        tries = self._tries[len(generations)]
        for trie, mask in zip(tries, generations, strict=True):
            trie.remove(mask, value)
        if not tries[0]:
            del self._tries[len(generations)]

    def find(self, generation: int, filter: int) -> list[Iterable[T]]:
        """The values under every mask that a filter of this generation contains, in groups.

        What is returned is to be read at once; it is not the caller's to keep or change.
        """
        key = generation, filter
        found = self._found.get(key)
        if found is None:
            found = self._search(generation, filter)
            if self._remembers:
                if len(self._found) >= self._remembers:
                    self._found.clear()
                self._found[key] = found
        return found

    def _search(self, generation: int, filter: int) -> list[Iterable[T]]:
        found: list[Iterable[T]] = []
        for count, tries in self._tries.items():
            found += tries[min(generation, count - 1)].find(filter)
        for value, masks in self._long.items():
            mask = masks[min(generation, len(masks) - 1)]
            if mask & filter == mask:
                found.append((value,))
        return found
