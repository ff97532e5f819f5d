"""The paths through a template that conversations of one shape have taken: a decision tree.

Its inner nodes are questions that the template asked, its leaves are fills. A leaf is also a function of its own that
asks the questions on the way to it, one after the other, and fills where all are answered as they were for it: most
conversations of a shape take one of its first paths, and are rendered by a single call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from premask.dtypes import Int64Array
from premask.render.expression import Expr, Fill, compile_expression

HOT = 4
"""So many leaves are tried one after the other before a tree is descended."""

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Leaf(Generic[A]):
    """One path through the template."""

    fill: Fill
    """Of a conversation that takes this path; None for any other."""
    sizes: Int64Array
    """`[p + 1]` UTF-8 bytes of every piece that is a literal, -1 of the others; and 1 for what keeps texts apart."""
    analysis: A


@dataclass(slots=True)
class Node(Generic[A]):
    """A question and the ways on from there; or a leaf."""

    question: Expr | None = None
    ask: Callable[[Sequence[Any]], Any] | None = None
    branches: "dict[Any, Node[A]]" = field(default_factory=dict)
    leaf: Leaf[A] | None = None


@dataclass(slots=True)
class Tree(Generic[A]):
    """All paths of one shape."""

    root: Node[A] = field(default_factory=Node)
    hot: list[Leaf[A]] = field(default_factory=list)
    """The first `HOT` leaves."""

    def descend(self, fields: Sequence[Any]) -> Leaf[A] | None:
        """The leaf of a conversation; None where its path is new. Raises what a question raises."""
        node: Node[A] | None = self.root
        while node is not None and node.ask is not None:
            node = node.branches.get(node.ask(fields))
        return None if node is None else node.leaf

    def insert(self, guards: Mapping[Expr, Any], leaf: Leaf[A]) -> None:
        """Add a leaf behind the questions `guards` with their answers, in the order in which they were asked."""
        node = self.root
        for question, answer in guards.items():
            if node.ask is None:
                node.question, node.ask = question, compile_expression(question)
            if node.question != question:
                raise AssertionError("bug in premask: a template asked different questions on one path")
            node = node.branches.setdefault(answer, Node())
        node.leaf = leaf
        if len(self.hot) < HOT:
            self.hot.append(leaf)
