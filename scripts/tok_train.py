"""Make tokenizer and tokens: python -m scripts.tok_train --text docstrings:numpy."""

from pt_app.pretrain.settings import TokenizerSettings, launch

if __name__ == "__main__":
    launch(TokenizerSettings, "vocabulary.make_tokens", __doc__)
