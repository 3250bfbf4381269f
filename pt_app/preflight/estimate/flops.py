"""Floating-point operations of a run: what other hardware's time is reckoned from."""

from collections.abc import Sequence
from dataclasses import dataclass

from pt_app.models.tree_attention import core
from pt_app.preflight.estimate.outline import Outline
from pt_app.preflight.estimate.plan import Pack, Plan


@dataclass(frozen=True)
class Cost:
    """The products of a model: weights a token passes through, adapters, head, attention.

    A weight costs two operations a token and pass (arXiv 2001.08361, section 2.1). A frozen one has
    a forward pass and the input's gradient, an adapter its own gradient too; with
    `checkpointed` activations the forward pass is made twice. Attention multiplies each token with
    the keys it sees, twice forward, five times backward (the scores are computed again).
    """

    body: int
    last_mlp: int
    adapters: int
    head: int
    vocabulary: int
    widest: int
    """Outputs of the widest layer, the head apart."""
    attention: int
    """Layers x heads x head size."""
    checkpointed: bool

    @staticmethod
    def of(outline: Outline) -> "Cost":
        """Read from the model's own layers."""
        config = outline.config
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        layers = getattr(getattr(core(outline.model), "model", None), "layers", None)
        mlp = getattr(layers[-1], "mlp", None) if layers is not None else None
        inside = set(mlp.modules()) if mlp is not None else set()
        return Cost(
            body=sum(layer.weight.numel() for layer in outline.linear),
            last_mlp=sum(one.weight.numel() for one in outline.linear if one in inside),
            adapters=sum(outline.adapters),
            head=config.hidden_size * config.vocab_size,
            vocabulary=config.vocab_size,
            widest=max(layer.out_features for layer in outline.linear),
            attention=config.num_hidden_layers * heads * size,
            checkpointed=outline.checkpointed,
        )

    def forward(self, pack: Pack) -> float:
        """A pass without gradients."""
        body = self.body - self.last_mlp + self.adapters
        products = body * pack.tokens + (self.last_mlp + self.head) * pack.kept
        return 2.0 * products + 4.0 * self.attention * pack.seen

    def training(self, pack: Pack) -> float:
        """Forward and backward."""
        once = self.forward(pack)
        again = once - 2.0 * self.head * pack.kept if self.checkpointed else 0.0
        own = 2.0 * self.adapters * pack.tokens
        return 2 * once + again + own + 6.0 * self.attention * pack.seen

    def of_training(self, plan: Plan) -> float:
        """All optimizer steps of a rank, without validations."""
        return sum(self.training(pack) for pack in plan.packs)

    def of_reading(self, packs: Sequence[Pack]) -> float:
        """Passes without gradients."""
        return sum(self.forward(pack) for pack in packs)
