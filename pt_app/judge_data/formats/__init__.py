"""Public formats by name: what `judge data import --format NAME` reads."""

from pt_app.judge_data.formats.public import CHAT, FORMATS, Format, fitting, get

__all__ = ["CHAT", "FORMATS", "Format", "fitting", "get"]
