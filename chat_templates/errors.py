"""The one error of this package; turning it into an HTTP answer is the front end's part."""


class FormatError(ValueError):
    """Messages, tools or a tokenizer that cannot be rendered.

    `param` names the field at fault, as in `messages[2].tool_calls[0].function.arguments`.
    """

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
