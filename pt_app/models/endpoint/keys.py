"""Keys that servers ask for, as bearer tokens."""

import os

from pt_app.core.errors import UserError


def key_in(name: str, required: bool = True) -> str:
    """Return the key in an environment variable; "" if it need not be set and is not.

    Raises:
        UserError: if it must be set and is not, and as `checked_key`.
    """
    if key := os.environ.get(name, ""):
        return checked_key(key, name)
    if required:
        raise UserError(f"{name} is not set: export the endpoint's key under that name")
    return ""


def checked_key(text: str, where: str) -> str:
    """Return a key without the blanks around it.

    What no header can hold is refused here: the errors of HTTP libraries would show the key.

    Raises:
        UserError: if it is not one word of ASCII.
    """
    key = text.strip()
    if len(key.split()) != 1 or not key.isascii():
        raise UserError(f"{where} holds no key: write one word of ASCII into it")
    return key
