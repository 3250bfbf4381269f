"""The hidden states from which a frozen base writes its verdicts, for a linear probe on them."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from io import BytesIO
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from pt_app.core.dataset import JudgeExample
from pt_app.core.errors import UserError
from pt_app.core.files import cache_folder, sha256_file, write_bytes_atomic
from pt_app.core.metrics import FloatArray
from pt_app.core.prompts import PromptEncoder
from pt_app.core.verdicts import Scale
from pt_app.models import bases
from pt_app.models.gemm import pack_weights
from pt_app.models.packing import Tree, chunk_by_tokens, common_prefix
from pt_app.models.tree_attention import (
    BLOCKS,
    core,
    last_mlp_only_at,
    tree_inputs,
    use_attention,
    why_no_tree,
)
from pt_app.scoring.scorer import evaluating

BUDGET = 2048  # tokens per forward pass, as the scorer's
MAX_CACHED = 2**30  # bytes of all entries; 2,000 rows of a base of width 4096 take 33 MB
Prompts = Sequence[Sequence[int]]
log = logging.getLogger(__name__)


class BaseStates:
    """The last hidden states of a base in float32 on the CPU, kept in the cache folder.

    An entry is named by the hash of the base's identity, its config.json and the tokens that are
    read: all that the states depend on. The base is loaded only for what is not there yet.
    """

    def __init__(self, source: bases.ModelSource, encoder: PromptEncoder) -> None:
        self.source = source
        self.encoder = encoder
        self._leads: dict[Scale, list[int]] = {}

    def lead(self, scale: Scale) -> list[int]:
        """Return what the lines of all verdicts of a scale begin with, such as "Score: "."""
        if scale not in self._leads:
            lines = [self.encoder.answer_ids(line) for line in scale.lines()]
            self._leads[scale] = lines[0][: common_prefix(min(lines), max(lines))]
        return self._leads[scale]

    def of(self, rows: Sequence[JudgeExample]) -> FloatArray:
        """Return the state from which the first token that tells verdicts apart is predicted.

        Returns:
            [n, width]; NaN for a row that does not fit the context.
        """
        # As in scoring: a label must not influence the prompt.
        bare = [row.model_copy(update={"label": None}) for row in rows]
        fitted, _ = self.encoder.fit(bare)
        lead = [self.lead(self.encoder.scale_of(row.example)) for row in fitted]
        prompts = [
            [*row.prompt, *own] for row, own in zip(fitted, lead, strict=True) if not row.unfit
        ]
        states = self._cached(prompts)
        whole = np.full((len(rows), states.shape[1]), np.nan)
        whole[[not row.unfit for row in fitted]] = states
        return whole

    def _cached(self, prompts: Prompts) -> FloatArray:
        what = json.dumps([self._identity, self._config, prompts], sort_keys=True)
        key = sha256(what.encode()).hexdigest()
        path = cache_folder() / "states" / f"{key}.npy"
        if (states := _read(path)) is not None:
            return states
        states = end_states(self._model, prompts)
        content = BytesIO()
        np.save(content, states.astype(np.float32))
        try:
            write_bytes_atomic(path, content.getvalue())
            _bound(path.parent)
        except UserError as error:  # the next evaluation computes them again
            log.warning("hidden states are not cached: %s", error)
        return states

    @cached_property
    def _identity(self) -> bases.Identity:
        return bases.model_identity(self.source)

    @cached_property
    def _config(self) -> str:
        return sha256_file(self.source.path / bases.CONFIG)

    @cached_property
    def _model(self) -> PreTrainedModel:
        model = bases.load_model(self.source)
        use_attention(model, BLOCKS)
        return pack_weights(model)


def _read(path: Path) -> FloatArray | None:
    """Return the states of a cache entry; None if there is none that can be read."""
    try:
        states = np.asarray(np.load(path), np.float64)
        with suppress(OSError):  # a cache of somebody else
            os.utime(path)  # now, for `_bound`: not every disk keeps when a file was read
        return states
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s cannot be read (%s): the states are computed again", path, error)
    return None


def _bound(folder: Path) -> None:
    """Remove the least recently used entries of the cache that are beyond `MAX_CACHED` bytes."""
    with suppress(OSError):  # another process removes some too
        entries = [(path.stat().st_mtime, path.stat().st_size, path) for path in folder.iterdir()]
        newest = sorted(entries, reverse=True)
        totals = accumulate(size for _, size, _ in newest)
        for total, (_, _, path) in zip(totals, newest, strict=True):
            if total > MAX_CACHED:
                path.unlink()


def end_states(model: PreTrainedModel, prompts: Prompts) -> FloatArray:
    """Return the last hidden state, after the final norm, of the last token of each prompt.

    Prompts are read together as prefix trees, one by one where the attention does not allow it.

    Returns:
        [n, width], computed in float32.
    """
    width = model.config.get_text_config().hidden_size
    states = np.empty((len(prompts), width))
    why = why_no_tree(model, max(map(len, prompts), default=0))
    together: Iterator[list[int]] = ([row] for row in range(len(prompts)))
    if why is None:
        together = chunk_by_tokens(prompts, BUDGET)
    bar = tqdm(total=len(prompts), desc="base: hidden states", disable=None)
    with evaluating(model), bar:
        for rows in together:
            tree = Tree.of([prompts[row] for row in rows])
            ends = torch.tensor([path[-1] for path in tree.paths], device=model.device)
            states[rows] = _hidden(model, tree, ends, why is None)[ends].float().cpu().numpy()
            bar.update(len(rows))
    return states


def _hidden(model: PreTrainedModel, tree: Tree, ends: torch.Tensor, is_tree: bool) -> torch.Tensor:
    """Return the last hidden states [t, width] of a tree, right at `ends` only."""
    ids, depths = (torch.tensor([each], device=model.device) for each in (tree.ids, tree.depths))
    last = torch.tensor(tree.last, device=model.device)
    inputs = tree_inputs(model, ids, depths, last) if is_tree else {"input_ids": ids}
    with last_mlp_only_at(model, torch.unique(ends)):
        hidden: torch.Tensor = core(model).base_model(**inputs, use_cache=False).last_hidden_state
    return hidden[0]
