"""The changes that a mutant may have: some of cosmic-ray's own operators, and those that it lacks."""

from __future__ import annotations

from typing import Any

import cosmic_ray.plugins  # type: ignore[import-not-found]
import parso  # type: ignore[import-not-found]
from cosmic_ray.operators.boolean_replacer import AddNot  # type: ignore[import-not-found]
from cosmic_ray.operators.operator import Example, Operator  # type: ignore[import-not-found]

# Of those of cosmic-ray. Numbers are left out: most are in tables that tests compare with other sources.
CHOSEN = (
    "ReplaceComparisonOperator_Eq_NotEq",
    "ReplaceComparisonOperator_NotEq_Eq",
    "ReplaceComparisonOperator_Lt_GtE",
    "ReplaceComparisonOperator_Lt_LtE",
    "ReplaceComparisonOperator_LtE_Gt",
    "ReplaceComparisonOperator_LtE_Lt",
    "ReplaceComparisonOperator_Gt_LtE",
    "ReplaceComparisonOperator_Gt_GtE",
    "ReplaceComparisonOperator_GtE_Lt",
    "ReplaceComparisonOperator_GtE_Gt",
    "ReplaceComparisonOperator_Is_IsNot",
    "ReplaceComparisonOperator_IsNot_Is",
    "ReplaceBinaryOperator_BitAnd_BitOr",
    "ReplaceUnaryOperator_Delete_Not",
    "ReplaceUnaryOperator_Delete_Invert",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "ExceptionReplacer",
    "ZeroIterationForLoop",
)


class Statement(Operator):  # type: ignore[misc]
    """Puts ``pass`` in the place of a statement."""

    def is_one(self, node: Any) -> bool:
        """Tell whether ``node`` is such a statement."""
        raise NotImplementedError

    def mutation_positions(self, node: Any) -> Any:
        """Yield where ``node`` stands."""
        if node.parent is not None and node.parent.type in ("simple_stmt", "suite", "file_input") and self.is_one(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Return ``pass``, with what stands before the statement."""
        return parso.python.tree.Keyword("pass", node.start_pos, node.get_first_leaf().prefix)


class DropCall(Statement):
    """Leaves a call out whose value nobody takes."""

    def is_one(self, node: Any) -> bool:
        """Tell whether it is a call."""
        return bool(
            node.type == "atom_expr" and node.children[-1].type == "trailer" and node.children[-1].children[0] == "("
        )

    @classmethod
    def examples(cls) -> Any:
        """Return one."""
        return (Example("a.b(1)\n", "pass\n"),)


class DropRaise(Statement):
    """Leaves a refusal out."""

    def is_one(self, node: Any) -> bool:
        """Tell whether it is one."""
        return bool(node.type == "raise_stmt")

    @classmethod
    def examples(cls) -> Any:
        """Return one."""
        return (Example("raise A(1)\n", "pass\n"),)


class DropExtension(Statement):
    """Leaves ``a += b`` and its like out."""

    def is_one(self, node: Any) -> bool:
        """Tell whether it is one."""
        return node.type == "expr_stmt" and node.children[1].type == "operator" and node.children[1].value[0] in "+-|&"

    @classmethod
    def examples(cls) -> Any:
        """Return one."""
        return (Example("a += 1\n", "pass\n"),)


def is_type(node: Any) -> bool:
    """Tell whether ``node`` stands in the annotation of a variable."""
    while node.parent is not None and node.parent.type != "annassign":
        node = node.parent
    return node.parent is not None and node is node.parent.children[1]


class DropFlag(Operator):  # type: ignore[misc]
    """Leaves one of several flags out: of ``a | b``, first a and then b. More than an ``&`` in place of the ``|``."""

    def mutation_positions(self, node: Any) -> Any:
        """Yield where each flag stands, but for those that are names of types."""
        if node.type == "expr" and node.children[1] == "|" and not is_type(node):
            for flag in node.children[::2]:
                yield flag.start_pos, flag.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Take flag and operator away."""
        prefix = node.get_first_leaf().prefix
        children = list(node.children)
        del children[max(0, 2 * index - 1) : max(0, 2 * index - 1) + 2]
        if index == 0:
            children[0].get_first_leaf().prefix = prefix
        node.children = children
        return node

    @classmethod
    def examples(cls) -> Any:
        """Return some."""
        return (
            Example("x = a | b | c\n", "x = b | c\n"),
            Example("x = a | b | c\n", "x = a | c\n", occurrence=1),
            Example("x = a | b | c\n", "x = a | b\n", occurrence=2),
            Example("x: a[b | c] = d | e\n", "x: a[b | c] = e\n"),
        )


class TurnIn(Operator):  # type: ignore[misc]
    """Turns ``in`` into ``not in`` and back."""

    def mutation_positions(self, node: Any) -> Any:
        """Yield where the word stands."""
        if node.type == "comparison":
            for word in node.children[1::2]:
                if word.get_code().split() in (["in"], ["not", "in"]):
                    yield word.start_pos, word.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Turn it."""
        words = [word for word in node.children[1::2] if word.get_code().split() in (["in"], ["not", "in"])]
        turned = " in" if words[index].get_code().split()[0] == "not" else " not in"
        node.children[node.children.index(words[index])] = parso.parse(turned)
        return node

    @classmethod
    def examples(cls) -> Any:
        """Return both."""
        return (Example("x = a in b\n", "x = a not in b\n"), Example("x = a not in b\n", "x = a in b\n"))


class Negate(AddNot):  # type: ignore[misc]
    """Negates a condition that no other operator can negate."""

    def mutation_positions(self, node: Any) -> Any:
        """Leave those out that another operator turns: comparisons, and what has a ``not``."""
        for position in super().mutation_positions(node):
            condition = node.children[2 if node.type == "test" else 1]
            if condition.type not in ("comparison", "not_test"):
                yield position


OWN = {operator.__name__: operator for operator in (DropCall, DropRaise, DropExtension, DropFlag, TurnIn, Negate)}


class Provider:
    """The operators as cosmic-ray asks for them."""

    def __init__(self) -> None:
        """Take those of cosmic-ray that are wanted, and our own."""
        core = cosmic_ray.plugins.OPERATOR_PROVIDERS["core"]
        self.operators = {**{name: core[name] for name in CHOSEN}, **OWN}

    def __iter__(self) -> Any:
        """Yield the names."""
        return iter(self.operators)

    def __getitem__(self, name: str) -> Any:
        """Return the operator of that ``name``."""
        return self.operators[name]


def install() -> None:
    """Have cosmic-ray use these operators and no others."""
    provider = Provider()
    cosmic_ray.plugins.OPERATOR_PROVIDERS.clear()
    cosmic_ray.plugins.OPERATOR_PROVIDERS["helper"] = provider


def check() -> None:
    """Assert that our own operators do what their examples say."""
    from cosmic_ray.mutating import mutate_code  # type: ignore[import-not-found]

    for operator in OWN.values():
        for example in operator.examples():
            done = mutate_code(example.pre_mutation_code, operator(), example.occurrence)
            assert done == example.post_mutation_code, (operator, example, done)
