"""The forms in which families of models write tool calls: as data (`form`), and read as they come (`reader`).

Not in use yet: `chat_templates.parser` reads the one form that `tool_call` knows, and no profile names another. The
grammars of these forms are `server.core.call_rules`'.
"""
