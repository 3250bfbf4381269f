"""Count the floating-point operations of a run, from which its time on other hardware follows."""

from collections.abc import Iterable
from dataclasses import dataclass

from pt_app.models.tree_attention import core
from pt_app.preflight.estimate.outline import Outline
from pt_app.preflight.estimate.plan import Pack


@dataclass(frozen=True)
class Cost:
    """The sizes of a model on which the operations of a pass depend.

    A weight costs two operations per token and pass (arXiv 2001.08361, section 2.1). A frozen
    weight takes part in the forward pass and in the gradient of the input, an adapter also in its
    own gradient; with `checkpointed` activations the forward pass is computed twice. Attention
    multiplies each token with the keys that it sees: twice forward, five times backward, where the
    scores are recomputed.

    Attributes:
        body: weights of the linear layers but the head, without adapters.
        last_mlp: those of the MLP of the last layer, computed at positions with logits only.
        adapters: weights of the adapters.
        head: weights of the head.
        vocabulary: outputs of the head.
        widest: outputs of the widest other layer.
        attention: layers x heads x head size.
        checkpointed: activations are recomputed in the backward pass.
    """

    body: int
    last_mlp: int
    adapters: int
    head: int
    vocabulary: int
    widest: int
    attention: int
    checkpointed: bool

    @staticmethod
    def of(outline: Outline) -> "Cost":
        """Read the sizes from the layers of the model."""
        config = outline.config
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        layers = getattr(getattr(core(outline.model), "model", None), "layers", None)
        mlp = getattr(layers[-1], "mlp", None) if layers is not None else None
        inside = set(mlp.modules()) if mlp is not None else set()
        return Cost(
            body=sum(layer.weight.numel() for layer in outline.linear),
            last_mlp=sum(layer.weight.numel() for layer in outline.linear if layer in inside),
            adapters=sum(outline.adapters),
            head=config.hidden_size * config.vocab_size,
            vocabulary=config.vocab_size,
            widest=max(layer.out_features for layer in outline.linear),
            attention=config.num_hidden_layers * heads * size,
            checkpointed=outline.checkpointed,
        )

    def forward(self, packs: Iterable[Pack]) -> float:
        """Return the operations of passes without gradients."""
        body = self.body - self.last_mlp + self.adapters
        total = 0.0
        for pack in packs:
            multiplied = body * pack.tokens + (self.last_mlp + self.head) * pack.logit_positions
            total += 2.0 * multiplied + 4.0 * self.attention * pack.seen
        return total

    def training(self, packs: Iterable[Pack]) -> float:
        """Return the operations of passes forward and backward."""
        total = 0.0
        for pack in packs:
            once = self.forward([pack])
            again = once - 2.0 * self.head * pack.logit_positions if self.checkpointed else 0.0
            own = 2.0 * self.adapters * pack.tokens
            total += 2 * once + again + own + 6.0 * self.attention * pack.seen
        return total
