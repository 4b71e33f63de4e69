"""Which token sequences have their keys and values in which slots: a radix tree.

Sequences that begin alike share nodes, so that a prompt is kept once for all its responses. When
slots run out, the ends of the least recently used sequences are evicted.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

NO_SLOTS = np.zeros(0, dtype=np.int64)

EVICTED = 1 / 32
"""Least share of all slots that is evicted at a time, since that looks at every node."""


@dataclass(kw_only=True, eq=False)
class _Node:
    """A run of tokens that follows its parent's; its children begin with different tokens."""

    ids: np.ndarray
    slots: np.ndarray
    parent: _Node | None
    used: int
    """The pass that used it last."""
    children: dict[int, _Node] = field(default_factory=dict)

    def shared_with(self, ids: np.ndarray) -> int:
        """Return how many leading tokens are the same."""
        length = min(len(self.ids), len(ids))
        differ = self.ids[:length] != ids[:length]
        return int(differ.argmax()) if differ.any() else length


class PrefixTree:
    """Token sequences, and the slots that each token's key and value are in."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = np.arange(num_slots)
        self._pass = 0
        self._root = _Node(ids=NO_SLOTS, slots=NO_SLOTS, parent=None, used=0)

    @property
    def num_free(self) -> int:
        """Slots that hold nothing."""
        return len(self._free)

    def begin_pass(self) -> None:
        """Begin a forward pass: what it uses from here on is not evicted before the next one."""
        self._pass += 1

    def count(self, ids: np.ndarray) -> int:
        """Return how many leading tokens of a sequence have slots."""
        return sum(shared for _, shared in self._walk(ids))

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Return the slots of a sequence's leading tokens, as many as have some, and use them."""
        return np.concatenate([NO_SLOTS, *(node.slots for node in self._use(ids))])

    def allocate(self, count: int) -> np.ndarray:
        """Return so many free slots, or as many as there are without those that this pass uses."""
        if count > self.num_free:
            self._evict(max(count - self.num_free, int(EVICTED * self.num_slots)))
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def release(self, slots: np.ndarray) -> None:
        """Give back slots that were allocated and not inserted."""
        if len(slots):
            self._free = np.concatenate([self._free, slots])

    def insert(self, ids: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Keep a sequence whose tokens are in these slots; both are ``[tokens]``.

        Returns the slots that it keeps: those of the tokens that had none.
        """
        path = self._use(ids)
        node, done = path[-1] if path else self._root, sum(len(node.ids) for node in path)
        new_ids, new_slots = ids[done:].copy(), slots[done:].copy()
        if not len(new_ids):
            return NO_SLOTS
        if path and not node.children:  # a sequence that grows stays one node
            node.ids = np.concatenate([node.ids, new_ids])
            node.slots = np.concatenate([node.slots, new_slots])
        else:
            node.children[int(new_ids[0])] = _Node(
                ids=new_ids, slots=new_slots, parent=node, used=self._pass
            )
        return new_slots

    def _walk(self, ids: np.ndarray) -> Iterator[tuple[_Node, int]]:
        """Yield the nodes along a sequence, each with the number of its tokens that are there."""
        node, done = self._root, 0
        while done < len(ids):
            child = node.children.get(int(ids[done]))
            if child is None:
                return
            shared = child.shared_with(ids[done:])
            yield child, shared
            if shared < len(child.ids):
                return
            node, done = child, done + shared

    def _use(self, ids: np.ndarray) -> list[_Node]:
        """Return the nodes of exactly a sequence's leading tokens, as used by this pass."""
        path = [
            node if shared == len(node.ids) else self._split(node, shared)
            for node, shared in list(self._walk(ids))
        ]
        for node in path:
            node.used = self._pass
        return path

    def _split(self, node: _Node, length: int) -> _Node:
        """Divide a node in two, and return the first, which has so many tokens."""
        parent = node.parent
        assert parent is not None
        first = _Node(
            ids=node.ids[:length].copy(),
            slots=node.slots[:length].copy(),
            parent=parent,
            used=node.used,
        )
        parent.children[int(node.ids[0])] = first
        # Copies: a view would keep all that the node had before.
        node.ids, node.slots = node.ids[length:].copy(), node.slots[length:].copy()
        node.parent = first
        first.children[int(node.ids[0])] = node
        return first

    def _evict(self, count: int) -> None:
        """Free so many slots, or all that this pass does not use if they are fewer."""
        # What a pass uses, it uses from the root on: all below an unused node is unused.
        unused = [node for node in self._nodes() if node.used < self._pass]
        leaves = [(node.used, i, node) for i, node in enumerate(unused) if not node.children]
        heapq.heapify(leaves)
        freed, order = [], len(unused)
        while count > 0 and leaves:
            _, _, node = heapq.heappop(leaves)
            if len(node.ids) > count:
                self._split(node, len(node.ids) - count)  # the node itself is the end then
            parent = node.parent
            assert parent is not None
            del parent.children[int(node.ids[0])]
            freed.append(node.slots)
            count -= len(node.ids)
            if parent is not self._root and not parent.children and parent.used < self._pass:
                order += 1
                heapq.heappush(leaves, (parent.used, order, parent))
        self.release(np.concatenate([NO_SLOTS, *freed]))

    def _nodes(self) -> Iterator[_Node]:
        waiting = [*self._root.children.values()]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.children.values())
