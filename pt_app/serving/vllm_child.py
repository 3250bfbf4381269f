"""Read log-probabilities with vLLM: what `vllm_process.py` starts in the interpreter of vLLM.

That environment has no pt_app, so that this file imports nothing of it. One JSON value per line.
In: {"device": kind, "model": the arguments of vllm.LLM}, then batches
{"prompts": [ids, ...], "lines": [ids, ...]}. Out: {"ready": version}, then {"logs": ...}, for each
prompt, line and token of the line its log-probability and its rank among all tokens; or
{"error": text} as the last line.
"""

import json
import os
import sys
from typing import Any


def main() -> None:
    """Answer what stands in stdin, until it ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what vLLM prints is no answer

    def say(**value: object) -> None:
        print(json.dumps(value), file=out, flush=True)

    try:
        import vllm
        from vllm.platforms import current_platform

        asked = json.loads(sys.stdin.readline())
        if (kind := current_platform.device_type) != asked["device"]:
            raise ValueError(f"it computes on {kind}: give --device {kind}, or another --python")
        llm = vllm.LLM(**asked["model"])
        # Of a prompt's tokens alone: 0 more of the likeliest at each place.
        own = {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 0, "detokenize": False}
        sampling = vllm.SamplingParams(**own)
        say(ready=vllm.__version__)
        for batch in sys.stdin:
            say(logs=_logs(llm, sampling, **json.loads(batch)))
    except Exception as error:
        say(error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
        raise


def _logs(llm: Any, sampling: Any, prompts: list[list[int]], lines: list[list[int]]) -> Any:
    """Return [log-probability, rank] for each prompt, line and token."""
    asked = [{"prompt_token_ids": [*ids, *line]} for ids in prompts for line in lines]
    answers = iter(llm.generate(asked, sampling, use_tqdm=False))
    return [
        [_of_line(next(answers).prompt_logprobs[-len(line) :], line) for line in lines]
        for _ in prompts
    ]


def _of_line(places: Any, line: list[int]) -> list[list[float]]:
    found = [place[token] for place, token in zip(places, line, strict=True)]
    return [[one.logprob, one.rank] for one in found]


if __name__ == "__main__":
    main()
