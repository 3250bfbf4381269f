"""The flags of commands that ask a model behind an OpenAI-compatible endpoint."""

from dataclasses import dataclass

from pt_app.core.flags import flag


@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """How requests are authorised, how many are made at a time, and what they may cost."""

    key_env: str = flag("environment variable that holds the key", "OPENAI_API_KEY")
    concurrency: int = flag("number of concurrent requests", 8, low=1)
    rpm: int = flag("requests per minute; 0: no limit", 0, low=0)
    tpm: int = flag("tokens per minute; 0: no limit", 0, low=0)
    price_in: float = flag("price of a million prompt tokens", 0.0, low=0, unit="dollars")
    price_out: float = flag("price of a million answer tokens", 0.0, low=0, unit="dollars")
    max_cost: float = flag("maximum cost; 0: no limit", 0.0, low=0, unit="dollars")
