"""The offline default, `--model tiny`: how a tiny base is trained from nothing, and the result."""

from pathlib import Path

from pt_app.errors import UserError


def shipped() -> Path:
    """The folder of the base that comes with the package; raises UserError if it is missing."""
    folder = Path(__file__).parent / "tiny"
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder} holds no base: build one with `judge base train --output ...`")
    return folder
