"""Fetch what the stages need beside their text, and read every byte that they will read."""

import logging
from pathlib import Path

from transformers import AutoTokenizer

from pt_app.core import console
from pt_app.pretrain import mixtures
from pt_app.pretrain.settings import FetchSettings
from pt_app.pretrain.shards import TOKENIZER, open_shards
from pt_app.pretrain.tasks import Bundle
from pt_app.pretrain.vocabulary import summary

log = logging.getLogger(__name__)


def fetch_all(settings: FetchSettings) -> None:
    """Fetch the evaluation data and the mixtures; load them, the tokenizer and the tokens.

    A folder that is there proves nothing on a node without a network: what the job will read is
    read here, and compared with its hash.

    Raises:
        UserError: for what cannot be fetched, or is not what was written.
    """
    console.start()
    log.info("evaluation data: %s", Bundle().path)
    log.info("%s: %d conversations", settings.mixture, len(mixtures.read(settings.mixture, 0)))
    data = Path(settings.data_dir)
    shards = open_shards(data, AutoTokenizer.from_pretrained(data / TOKENIZER))
    log.info("tokens: %s", summary(shards.manifest))
