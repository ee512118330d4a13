"""The chat templates and the code that renders and parses the chat format; knows nothing of HTTP.

`format.ChatFormat` turns messages into token ids, `parser.OutputParser` turns generated ids into reasoning, answer and
tool calls. The other files serve these two.
"""
