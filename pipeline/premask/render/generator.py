"""The code that Jinja generates for a traced template: what is written stays in pieces, and loops tell whose they are.

Compiled code calls back into its environment (`tracing.py`): `written` for what goes into the text, `joined` for `~`,
`contained` for `in`, and the events of loops and assignments. All else is Jinja's own.
"""

from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame


class Generator(CodeGenerator):
    """Jinja's code generator, with pieces kept apart."""

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write("environment.written(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """`a ~ b`."""
        self.write("environment.joined((")
        for operand in node.nodes:
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        """`a in b`, which C code answers for plain containers; other comparisons are asked of the operands."""
        if len(node.ops) != 1 or node.ops[0].op not in ("in", "notin"):
            super().visit_Compare(node, frame)
            return
        self.write("(not " if node.ops[0].op == "notin" else "(")
        self.write("environment.contained(")
        self.visit(node.expr, frame)
        self.write(", ")
        self.visit(node.ops[0].expr, frame)
        self.write("))")


def mark(tree: nodes.Template) -> nodes.Template:
    """Tell the environment where loops begin, iterate and end, what `set` assigns, and what would escape."""
    for node in [tree, *tree.find_all(nodes.Node)]:
        for field in ("body", "else_"):
            body = getattr(node, field, None)
            if isinstance(body, list):
                setattr(node, field, [marked for child in body for marked in _marked(child)])
    return tree


def _marked(node: nodes.Node) -> list[nodes.Node]:
    if isinstance(node, nodes.For):
        names = [n.name for n in (node.target, *node.target.find_all(nodes.Name)) if isinstance(n, nodes.Name)]
        node.body.insert(0, _tell("entered", names, node.lineno))
        return [_tell("opened_scope", [], node.lineno), node, _tell("closed_scope", [], node.lineno)]
    if isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
        return [node, _tell("assigned", [node.target.name], node.lineno)]
    if isinstance(node, nodes.EvalContextModifier):
        return [_tell("escaping", [], node.lineno), node]
    return [node]


def _tell(event: str, names: list[str], line: int) -> nodes.Node:
    arguments: list[nodes.Expr] = [nodes.Name(name, "load") for name in names]
    call = nodes.Call(nodes.EnvironmentAttribute(event), arguments, [], None, None)
    return nodes.ExprStmt(call).set_lineno(line)
