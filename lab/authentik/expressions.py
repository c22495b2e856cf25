"""The expressions of scope mappings: not Python, but the little of it that the roles and Authentik's defaults write.

One `return` of literals, of what the request's user has, and of simple choices between them. Everything else is
refused, with a name: a mapping that only the lab could evaluate would be worth nothing.
"""

from __future__ import annotations

import ast
import textwrap
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


class Unknown(Exception):  # noqa: N818 - it is the evaluator that does not know
    """An expression that this evaluator does not know."""


@dataclass(frozen=True)
class Group:
    """A group as an expression sees it."""

    name: str
    pk: str = ""
    attributes: Json = field(default_factory=dict)


@dataclass(frozen=True)
class User:
    """A user as an expression sees it; `inherited` are its groups with their parents."""

    username: str
    name: str
    email: str
    uid: str
    uuid: str
    pk: int
    is_superuser: bool
    attributes: Json
    direct: tuple[Group, ...] = ()
    inherited: tuple[Group, ...] = ()

    @classmethod
    def of(cls, row: Json, direct: list[Json], inherited: list[Json]) -> User:
        """Make one from the rows of the store."""
        values = {name: row[name] for name in ("username", "name", "email", "uid", "uuid", "pk", "attributes")}
        kinds = [
            tuple(Group(group["name"], group["pk"], group["attributes"]) for group in groups)
            for groups in (direct, inherited)
        ]
        superuser = any(group["is_superuser"] for group in inherited)
        return cls(**values, is_superuser=superuser, direct=kinds[0], inherited=kinds[1])


def evaluate(expression: str, user: User) -> Json:
    """Return the claims that a scope mapping adds.

    Raises:
        Unknown: the expression is none of those.
    """
    (body,) = ast.parse("def mapping():\n" + textwrap.indent(expression, "    ")).body
    statements = [
        each
        for each in getattr(body, "body", [])
        if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
    ]
    if len(statements) != 1 or not isinstance(statements[0], ast.Return) or statements[0].value is None:
        raise Unknown("it is not one `return`")
    claims = _value(statements[0].value, {"user": user})
    if claims is not None and not isinstance(claims, dict):
        raise Unknown("it does not return a dictionary")
    return claims or {}


def _value(node: ast.expr, names: Json) -> Any:  # noqa: PLR0911, PLR0912 - a table of node types
    match node:
        case ast.Constant(value):
            return value
        case ast.Dict(keys, values) if None not in keys:
            return {_value(key, names): _value(value, names) for key, value in zip(keys, values, strict=True) if key}
        case ast.List(entries) | ast.Tuple(entries):
            return [_value(entry, names) for entry in entries]
        case ast.Name(name) if name in names:
            return names[name]
        case ast.Attribute(ast.Name("request"), "user"):
            return names["user"]
        case ast.Attribute(of, name):
            return _attribute(_value(of, names), name)
        case ast.Subscript(of, index):
            return _value(of, names)[_value(index, names)]
        case ast.Call():
            return _call(node, names)
        case ast.ListComp(element, [ast.comprehension(ast.Name(name), over, conditions)]):
            scopes = ({**names, name: entry} for entry in _value(over, names))
            return [_value(element, scope) for scope in scopes if all(_value(each, scope) for each in conditions)]
        case ast.IfExp(test, then, otherwise):
            return _value(then if _value(test, names) else otherwise, names)
        case ast.BoolOp(ast.And(), values):
            return all(_value(value, names) for value in values)
        case ast.BoolOp(ast.Or(), values):
            return next((found for value in values if (found := _value(value, names))), None)
        case ast.UnaryOp(ast.Not(), operand):
            return not _value(operand, names)
        case ast.Compare(left, [operator], [right]):
            return _compare(_value(left, names), operator, _value(right, names))
    raise Unknown(f"`{ast.unparse(node)}`")


def _compare(left: Any, operator: ast.cmpop, right: Any) -> bool:
    match operator:
        case ast.Eq():
            return bool(left == right)
        case ast.NotEq():
            return bool(left != right)
        case ast.In():
            return left in right
        case ast.NotIn():
            return left not in right
    raise Unknown(f"the comparison {type(operator).__name__}")


def _attribute(of: Any, name: str) -> Any:
    if isinstance(of, User) and name in ("groups", "ak_groups"):
        return of.direct
    if isinstance(of, User | Group) and name in of.__dataclass_fields__ and name not in ("direct", "inherited"):
        return getattr(of, name)
    raise Unknown(f"the attribute {name}")


def _call(node: ast.Call, names: Json) -> Any:
    arguments = [_value(argument, names) for argument in node.args]
    match node.func:
        case ast.Name("ak_is_group_member") if len(arguments) == 1 and len(node.keywords) == 1:
            wanted = _value(node.keywords[0].value, names)
            return any(getattr(group, node.keywords[0].arg or "") == wanted for group in arguments[0].inherited)
        case ast.Name("bool" | "str" | "list" as name) if len(arguments) == 1 and not node.keywords:
            return {"bool": bool, "str": str, "list": list}[name](arguments[0])
        case ast.Attribute(of, "all") if not arguments and isinstance(found := _value(of, names), tuple):
            return found
        case ast.Attribute(of, "all_groups") if not arguments and isinstance(found := _value(of, names), User):
            return found.inherited
        case ast.Attribute(of, "get") if arguments and isinstance(found := _value(of, names), dict):
            return found.get(*arguments)
        case ast.Attribute(of, "split" | "lower" | "strip" as name) if isinstance(found := _value(of, names), str):
            return getattr(found, name)(*arguments)
    raise Unknown(f"the call `{ast.unparse(node)}`")
