"""Attentive probe: one query attends to all patch tokens, and a linear layer classifies the result.

    patch tokens -> standardised -> one cross-attention query -> linear layer -> softmax

It measures what all tokens contain; a pooled probe measures what their mean contains. Features of masked prediction
often score far better here (Context Autoencoder, https://arxiv.org/abs/2202.03026, introduced "attentive probing").

Shapes: M images, B batch, N patches, D width, h attention heads of width e = D / h, K classes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitmae.errors import UserError
from vitmae.probes.confidence import ProbeResult, accuracy_of, probe_result
from vitmae.probes.features import Features, require_labels, require_patches
from vitmae.probes.head_training import Standardize, Sweep, fit_on_tokens, predict_on_tokens
from vitmae.randomness import generator

BASE_LRS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # per 256 images
EPOCHS = 50
WARMUP_EPOCHS = 5
BATCH_SIZE = 256
SWEEP = Sweep(BASE_LRS, EPOCHS, WARMUP_EPOCHS, BATCH_SIZE)


class AttentiveHead(nn.Module):
    """Cross attention with a single learned query, and a linear layer.

    With one query, keys and values of the N tokens need not be computed. The query is multiplied by the key weights
    instead, q' (W x) = (W' q)' x, and the values' projection is linear, so it is applied to the weighted mean of the
    tokens: 2 N D h products per image instead of 2 N D D. Keys and values have no biases: a bias of the keys has no
    effect on the softmax, and the linear layer's bias replaces that of the values.

    Args:
        standardize: applied to the tokens first.
        num_classes: K.
        num_heads: h, a divisor of D.
        seed: of the initial weights.
    """

    def __init__(self, standardize: Standardize, num_classes: int, num_heads: int, seed: int = 0) -> None:
        super().__init__()
        num_features = len(standardize.mean)
        if num_features % num_heads:
            raise UserError(
                f"attentive: a width of {num_features} has no {num_heads} attention heads: num_heads must be a divisor"
            )
        self.standardize = standardize
        random = generator(seed, "attentive")
        width = num_features // num_heads
        bound = math.sqrt(3 / num_features)  # xavier-uniform of a (D, D) projection
        self.query = nn.Parameter(torch.empty(num_heads, width).normal_(0, 0.02, generator=random))
        shape = num_heads, width, num_features
        self.key = nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=random))
        self.value = nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=random))
        self.weight = nn.Parameter(torch.empty(num_classes, num_features).normal_(0, 0.01, generator=random))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, tokens: Tensor) -> Tensor:
        """Classify: (B, N, D) -> (B, K)."""
        tokens = self.standardize(tokens)
        query = torch.einsum("he,hed->hd", self.query, self.key) / math.sqrt(self.query.shape[1])
        attention = torch.einsum("bnd,hd->bhn", tokens, query).softmax(2)  # (B, h, N)
        seen = attention @ tokens  # (B, h, D)
        latent = torch.einsum("bhd,hed->bhe", seen, self.value).flatten(1)  # (B, D)
        return functional.linear(latent, self.weight, self.bias)  # (B, K)


def attentive(
    train: Features,
    val: Features,
    test: Features,
    *,
    num_heads: int | None = None,
    sweep: Sweep = SWEEP,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ProbeResult:
    """The whole probe on cached patch tokens: the test accuracy of the head that did best on ``val``.

    Args:
        train: labelled, with patch tokens.
        val: labelled, with patch tokens; the learning rate is chosen on it.
        test: labelled, with patch tokens; only the chosen head is scored on it.
        num_heads: of the attention; None: heads of width 64, as in ViT, or one head if D is not divisible by 64.
        sweep: the learning rates of AdamW, and how long and on which batches to train.
        seed: of initial weights and order.
        device: where to train; tokens are copied there batch by batch.

    Raises:
        UserError: labels or patch tokens are missing, or D is not divisible by ``num_heads``.
    """
    require_labels(train, val, test)
    patches = require_patches(train), require_patches(val), require_patches(test)
    width = patches[0].shape[2]
    if num_heads is None:
        num_heads = width // 64 if width % 64 == 0 else 1
    standardize = Standardize(patches[0])
    heads = [AttentiveHead(standardize, train.num_classes, num_heads, seed).to(device) for _ in sweep.base_lrs]
    fit_on_tokens(heads, patches[0], train.labels, functional.cross_entropy, sweep, seed, "attentive")
    accuracies = [accuracy_of(_predict(head, patches[1]), val.labels) for head in heads]
    chosen = accuracies.index(max(accuracies))
    return probe_result(
        "attentive",
        "patches",
        per_seed=[accuracy_of(_predict(heads[chosen], patches[2]), test.labels)],
        num_images=len(test),
        setting={"base_lr": sweep.base_lrs[chosen], "num_heads": num_heads},
        validation=dict(zip(sweep.base_lrs, accuracies, strict=True)),
    )


def _predict(head: AttentiveHead, patches: Tensor) -> Tensor:
    """The class of each image: (M, N, D) -> (M,) int64 on the CPU."""
    return torch.cat([logits.argmax(1).cpu() for logits in predict_on_tokens(head, patches)])
