"""What a dialect's `decode_request` raises on a body that is not of its API's shape."""


class BadRequest(ValueError):
    """The caller's mistake. `message` may be shown to the caller; `param` names the field, where one is to blame."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
