"""A tool as OpenAI's chat API first described it, and as others took it over: a function with its schema."""

from msgspec import Raw

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o


def function_tool(raw: Raw, at: str, dialect: n.DialectName) -> n.Tool | n.NativeTool:
    """`at`: its path, for messages. What is no function is the dialect's own. Raises BadRequest."""
    given = o.Fields(raw, at)
    if not given.has("function") or given.text("type") != "function":
        return n.NativeTool(dialect=dialect, raw=raw)
    function = given.need("function", given.child("function"))
    name = function.need("name", function.text("name"))
    description = function.text("description")
    schema = function.raw("parameters")
    if function.left:
        given.left["function"] = Raw(o.encode(function.left))
    return n.Tool(name=name, description=description, schema=schema, extra=given.left)
