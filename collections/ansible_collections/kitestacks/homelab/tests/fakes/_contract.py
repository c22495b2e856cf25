# Copyright: (c) 2026, KiteStacks maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check requests and answers against a vendor's OpenAPI 3.0 document.

The documents are not part of this repository. They are looked for in the folder that the environment variable
KITE_CONTRACTS names, else in `../shared/contracts` beside the repository. Where they are missing, `Contract.load` says
so once on standard error and returns None: the fakes then serve unchecked.
"""

from __future__ import annotations

import json
import os
import re
import sys
import typing as t
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[6]
ROOT = "urn:contract"


class Contract:
    """An OpenAPI document with its validators, made when first needed."""

    def __init__(self, document: dict[str, t.Any]) -> None:
        """Index the operations of a document.

        Raises:
            ImportError: openapi-schema-validator (a test dependency) is missing.
        """
        import referencing  # noqa: PLC0415
        from openapi_schema_validator import (  # noqa: PLC0415
            OAS30ReadValidator,
            OAS30WriteValidator,
            oas30_format_checker,
        )
        from referencing.jsonschema import DRAFT4  # noqa: PLC0415

        self.document = document
        self._paths = [(_pattern(template), template) for template in document["paths"]]
        # A fixed path wins over one with a placeholder: /dns_records/batch before /dns_records/{id}.
        self._paths.sort(key=lambda pair: pair[1].count("{"))
        self._registry = referencing.Registry().with_resource(ROOT, DRAFT4.create_resource(document))
        self._classes = {"request": OAS30WriteValidator, "response": OAS30ReadValidator}
        self._formats = oas30_format_checker
        self._validators: dict[tuple[str, str], t.Any] = {}

    @classmethod
    def load(cls, name: str) -> Contract | None:
        """Return the contract in the file `name`, or None (said on standard error) where there is none."""
        file = folder() / name
        if not file.is_file():
            print(f"contract check off: no {name} in KITE_CONTRACTS or ../shared/contracts", file=sys.stderr)
            return None
        return _load(str(file))

    def operation(self, method: str, path: str) -> tuple[str, dict[str, t.Any]] | None:
        """Return (path template, operation) for a request, or None when the document has none."""
        for pattern, template in self._paths:
            if pattern.fullmatch(path) and method.lower() in self.document["paths"][template]:
                return template, self.document["paths"][template][method.lower()]
        return None

    def check_request(self, method: str, path: str, query: t.Mapping[str, str], body: t.Any) -> list[str]:
        """Return what is wrong with a request: operation, query names and values, body, unknown top-level keys."""
        found = self.operation(method, path)
        if found is None:
            return ["no such operation"]
        template, operation = found
        wrong = self._check_query(template, operation, query)
        content = self._resolve(operation.get("requestBody", {})).get("content", {})
        if "application/json" in content:
            pointer = f"{_pointer(template, method)}/requestBody/content/application~1json/schema"
            if body is not None:
                wrong += self._validate("request", pointer, body)
                known = self.properties(content["application/json"]["schema"])
                if isinstance(body, dict) and known:
                    wrong += [f"unknown key {name}" for name in body if name not in known]
            elif self._resolve(operation["requestBody"]).get("required"):
                wrong.append("body missing")
        elif body not in (None, {}):
            wrong.append("a body where none is expected")
        return wrong

    def check_response(self, method: str, path: str, status: int, body: t.Any) -> list[str]:
        """Return what is wrong with an answer. Failures of operations that document none are not checked."""
        found = self.operation(method, path)
        if found is None:
            return []
        template, operation = found
        responses = operation["responses"]
        code = next((code for code in (str(status), f"{status // 100}XX", "default") if code in responses), None)
        if code is None:
            return [f"status {status} is not documented"] if status < 400 else []
        content = self._resolve(responses[code]).get("content", {})
        if "application/json" not in content:
            return [] if body in (None, "") else ["a body where none is expected"]
        return self._validate(
            "response", f"{_pointer(template, method)}/responses/{code}/content/application~1json/schema", body
        )

    def properties(self, schema: dict[str, t.Any]) -> set[str]:
        """Return the top-level property names that a schema knows, of all its variants."""
        schema = self._resolve(schema)
        names = set(schema.get("properties", {}))
        for part in ("allOf", "anyOf", "oneOf"):
            for variant in schema.get(part, []):
                names |= self.properties(variant)
        return names

    def _check_query(self, template: str, operation: dict[str, t.Any], query: t.Mapping[str, str]) -> list[str]:
        listed = [*self.document["paths"][template].get("parameters", []), *operation.get("parameters", [])]
        known = {parameter["name"]: parameter for parameter in map(self._resolve, listed) if parameter["in"] == "query"}
        wrong = [f"unknown query parameter {name}" for name in query if name not in known]
        for name, value in query.items():
            if name in known:
                schema = self._resolve(known[name].get("schema", {}))
                wrong += [f"query {name}: {line}" for line in self._check_parameter(schema, value)]
        wrong += [f"query {name} missing" for name in known if known[name].get("required") and name not in query]
        return wrong

    def _check_parameter(self, schema: dict[str, t.Any], value: str) -> list[str]:
        kind = schema.get("type")
        typed: t.Any = value
        try:
            if kind in ("integer", "number"):
                typed = float(value) if "." in value else int(value)
            elif kind == "boolean":
                typed = {"true": True, "false": False}[value.lower()]
            elif kind == "array":
                return []
        except (ValueError, KeyError):
            return [f"{value!r} is no {kind}"]
        wrong = []
        if "enum" in schema and typed not in schema["enum"]:
            wrong.append(f"{value!r} is none of {schema['enum']}")
        if "maximum" in schema and typed > schema["maximum"]:
            wrong.append(f"{value} is above {schema['maximum']}")
        if "minimum" in schema and typed < schema["minimum"]:
            wrong.append(f"{value} is below {schema['minimum']}")
        return wrong

    def _resolve(self, node: dict[str, t.Any]) -> dict[str, t.Any]:
        while "$ref" in node:
            found: t.Any = self.document
            for part in node["$ref"].removeprefix("#/").split("/"):
                found = found[part.replace("~1", "/").replace("~0", "~")]
            node = found
        return node

    def _validate(self, direction: str, pointer: str, body: t.Any) -> list[str]:
        validator = self._validators.get((direction, pointer))
        if validator is None:
            validator = self._classes[direction](
                {"$ref": f"{ROOT}#{pointer}"}, registry=self._registry, format_checker=self._formats
            )
            self._validators[direction, pointer] = validator
        return [_explain(error) for error in validator.iter_errors(body)]


def folder() -> Path:
    """Return the folder in which the vendors' documents are looked for."""
    return Path(os.environ.get("KITE_CONTRACTS") or REPOSITORY.parent / "shared" / "contracts")


@cache
def _load(file: str) -> Contract:
    return Contract(json.loads(Path(file).read_text()))


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile("".join(part if part == "[^/]+" else re.escape(part) for part in _split(template)))


def _split(template: str) -> t.Iterator[str]:
    for part in re.split(r"(\{[^}]+\})", template):
        yield "[^/]+" if part.startswith("{") else part


def _pointer(template: str, method: str) -> str:
    escaped = template.replace("~", "~0").replace("/", "~1").replace("{", "%7B").replace("}", "%7D")
    return f"/paths/{escaped}/{method.lower()}"


def _explain(error: t.Any) -> str:
    """Return the message of the variant that fits best: `anyOf` alone only says that nothing fits."""
    import jsonschema  # noqa: PLC0415

    best = jsonschema.exceptions.best_match([error]) if error.context else error
    where = "/".join(str(part) for part in best.absolute_path)
    return f"{where or 'body'}: {best.message}"[:400]
