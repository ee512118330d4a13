"""The forms in which families of models write tool calls: as data (`form`, `known`), and read as they come (`reader`).

The grammars of these forms are `server.core.call_rules`'.
"""
