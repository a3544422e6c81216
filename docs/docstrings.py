"""What mkdocstrings is told of the docstrings of `bilevel`: how they name arguments and others."""

import re

import griffe

SECTIONS = frozenset({"Attributes", "Parameters", "Raises", "Returns"})
ITEM = re.compile(r"(\S.*?) : (.+)")
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([^`]+)`")


def split_items(text: str) -> str:
    """Return the docstring with one item for each name, and its text below the name.

    ``name : text`` would be read as a name and its type; types are in the signatures here. What is
    said of the ``Others`` of a section stands before the first section.
    """
    lines = [*text.split("\n"), ""]
    out: list[str] = []
    section, first, others = "", None, []
    while lines[1:]:
        line = lines.pop(0)
        if lines[0].startswith("---"):
            section, first = line, len(out) if first is None else first
        item = ITEM.fullmatch(line) if section in SECTIONS else None
        if item is None:
            out.append(line)
            continue
        below = [f"    {item[2]}"]
        while lines[0].startswith(" "):
            below.append(lines.pop(0))
        if item[1] == "Others":
            others += [f"Other {section.lower()}: {item[2]}", *below[1:], ""]
        else:
            names = item[1].split(", ") if section in {"Attributes", "Parameters"} else [item[1]]
            out += [part for name in names for part in (name, *below)]
    out[first or 0 : first or 0] = others
    return "\n".join(out)


def link_roles(text: str, obj: griffe.Object) -> str:
    """Return the docstring with its roles, ``:func:`name```, as references between pages."""

    def link(role: re.Match[str]) -> str:
        name, path = role[1], role[1]
        if not name.startswith("bilevel."):
            first, *rest = name.split(".")
            try:
                path = ".".join([obj.resolve(first), *rest])
            except griffe.NameResolutionError:
                return f"`{name}`"
        return f'<autoref optional identifier="{path}"><code>{name}</code></autoref>'

    return ROLE.sub(link, text)


def add_signature(obj: griffe.Class) -> None:
    """Give a named tuple the signature that its fields make."""
    if "__init__" not in obj.members and any("NamedTuple" in str(base) for base in obj.bases):
        kind = griffe.ParameterKind.positional_or_keyword
        fields = [
            griffe.Parameter(name, annotation=field.annotation, kind=kind, default=field.value)
            for name, field in obj.members.items()
            if isinstance(field, griffe.Attribute) and "instance-attribute" in field.labels
        ]
        this = griffe.Parameter("self", kind=kind)
        parameters = griffe.Parameters(this, *fields)
        obj.set_member("__init__", griffe.Function("__init__", parameters=parameters))


class HouseDocstrings(griffe.Extension):
    """Rewrites docstrings of this house into what a numpydoc parser reads."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of one object, where it has one."""
        if obj.docstring is not None:
            obj.docstring.value = link_roles(split_items(obj.docstring.value), obj)
        if isinstance(obj, griffe.Class):
            add_signature(obj)
