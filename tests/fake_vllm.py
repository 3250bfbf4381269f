"""What of vLLM `judge score --engine vllm` uses, computed by transformers, for tests.

`FAKE_VLLM` makes it wrong: "shifted" log-probabilities, another "device", "unloadable" models, or
"dies:N", the end of the process at the second batch of N sequences.
"""

import os
import sys
from types import SimpleNamespace
from typing import Any

__version__ = "fake"
FAULT = os.environ.get("FAKE_VLLM", "")
SamplingParams = SimpleNamespace
sys.modules["vllm.platforms"] = SimpleNamespace(  # type: ignore[assignment]
    current_platform=SimpleNamespace(device_type="cuda" if FAULT == "device" else "cpu")
)


class LLM:
    def __init__(self, *, model: str, dtype: str, max_model_len: int, **_: Any) -> None:
        if FAULT == "unloadable":
            raise ValueError("Model architectures ['Odd']\nare not supported")
        import torch
        from transformers import AutoModelForCausalLM

        kind = getattr(torch, dtype)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=kind).eval()
        self.longest, self.sizes = max_model_len, list[int]()
        print("a line on stdout, as vLLM prints many")

    def generate(self, prompts: Any, sampling: Any, use_tqdm: bool) -> list[Any]:
        self.sizes.append(len(prompts))
        if FAULT.startswith("dies:") and self.sizes.count(int(FAULT[5:])) == 2:
            os._exit(9)
        assert (sampling.prompt_logprobs, sampling.max_tokens) == (0, 1)
        return [self._answer(prompt["prompt_token_ids"]) for prompt in prompts]

    def _answer(self, ids: list[int]) -> Any:
        import torch

        assert len(ids) < self.longest
        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([ids])).logits[0].float()
        logs = logits.log_softmax(-1)
        places: list[Any] = [None]
        for place, token in zip(logs, ids[1:], strict=False):
            own = float(place[token])
            rank = int((place >= own).sum())
            log = own * 1.5 if FAULT == "shifted" else own
            places.append({token: SimpleNamespace(logprob=log, rank=rank)})
        return SimpleNamespace(prompt_logprobs=places)
