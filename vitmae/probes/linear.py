"""Linear probe, the recipe of MAE (https://arxiv.org/abs/2111.06377, table 10), for many learning rates at once.

    features -> batch norm without scale and shift -> one linear layer per pooling and learning rate -> softmax

LARS, momentum 0.9, no weight decay, base lr 0.1, batch 16,384, 90 epochs of which 10 warm up, cosine per step.
The learning rate is chosen on the validation split, and only the chosen head is scored on the test split.
With fewer images than a batch, 90 epochs are 90 steps. They are not enough if the features are strongly correlated: use
`vitmae.probes.logistic` then.

The heads are one stack of weights, multiplied by the features in one product. LARS scales each head's step by its own
weight and gradient norms, so a head in a stack learns the same as alone.

Shapes: P poolings, L learning rates, B batch, D width, K classes.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from timm.optim.lars import Lars
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from vitmae.errors import UserError
from vitmae.probes.confidence import ProbeResult, accuracy_of, probe_result
from vitmae.probes.features import Features, require_labels
from vitmae.probes.head_training import Sweep, epoch_batches, warmup_cosine
from vitmae.randomness import generator

# Per 256 images. The paper's is 0.1, for the million images of ImageNet. LARS moves a weight by a share of its norm
# that is proportional to the learning rate, so its way in 90 epochs is proportional to base_lr * images: on a thousand
# images, 0.1 stays near the initial weights (23 % on scikit-learn's digits), and 10 does not (96 %).
BASE_LRS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
EPOCHS = 90
WARMUP_EPOCHS = 10
BATCH_SIZE = 16384
SWEEP = Sweep(BASE_LRS, EPOCHS, WARMUP_EPOCHS, BATCH_SIZE)

_LOGITS = 1 << 24  # logits at a time, so that a batch of 16,384 with many heads and classes fits the memory


class LinearHeads(nn.Module):
    """P x L linear classifiers, one per pooling and learning rate, all from the same initial weights.

    Args:
        num_features: D.
        num_classes: K.
        poolings: the names of the features, in the order of the stack.
        base_lrs: one head per learning rate and pooling.
        seed: of the initial weights, normal(0.01) cut at the values -2 and 2 as in the recipe; biases are 0.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        poolings: Sequence[str],
        base_lrs: Sequence[float] = BASE_LRS,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.poolings, self.base_lrs = tuple(poolings), tuple(base_lrs)
        stack = len(self.poolings), len(self.base_lrs)
        # a plain average over all batches (momentum=None): after a run of a few steps, the usual exponential one
        # would still contain its initial values
        self.norm = nn.BatchNorm1d(stack[0] * num_features, eps=1e-6, momentum=None, affine=False)
        initial = torch.empty(num_features, num_classes)
        nn.init.trunc_normal_(initial, std=0.01, a=-2.0, b=2.0, generator=generator(seed, "linear"))
        self.weight = nn.Parameter(initial.expand(*stack, -1, -1).clone())  # (P, L, D, K)
        self.bias = nn.Parameter(torch.zeros(*stack, 1, num_classes))  # (P, L, 1, K)

    def normalize(self, features: Tensor) -> Tensor:
        """Batch norm of each pooling: (P, B, D) -> (P, B, D)."""
        poolings, batch, width = features.shape
        flat = self.norm(features.transpose(0, 1).reshape(batch, poolings * width))
        return flat.view(batch, poolings, width).transpose(0, 1)

    def classify(self, normalized: Tensor) -> Tensor:
        """Logits of every head: (P, B, D), normalised -> (P, L, B, K)."""
        return torch.einsum("pbd,pldk->plbk", normalized, self.weight) + self.bias

    def rows_at_a_time(self) -> int:
        """How many images the heads classify at once."""
        return max(_LOGITS // (self.bias.numel()), 1)


def fit_heads(
    heads: LinearHeads,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    batch_size: int,
    steps: int,
    warmup_steps: int,
) -> None:
    """Train all heads on the same batches.

    Args:
        heads: trained in place; in eval mode afterwards.
        batches: features (P, B, D) and labels (B,), on the device of the heads; at least two images each.
        batch_size: B; the peak learning rates are base_lr * B / 256.
        steps: how many batches there are.
        warmup_steps: steps of warm-up.
    """
    heads.train()
    optimizer = _lars(heads, [base_lr * batch_size / 256 for base_lr in heads.base_lrs])
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, warmup_steps))
    for features, labels in batches:
        normalized = heads.normalize(features)  # (P, B, D)
        for first in range(0, len(labels), heads.rows_at_a_time()):
            rows = slice(first, first + heads.rows_at_a_time())
            logits = heads.classify(normalized[:, rows])  # (P, L, b, K)
            targets = labels[rows].expand(*logits.shape[:3]).flatten()  # (P * L * b,)
            loss = functional.cross_entropy(logits.flatten(0, 2), targets, reduction="sum")
            (loss / len(labels)).backward()
        optimizer.step()
        schedule.step()
        heads.zero_grad(set_to_none=False)  # in place: the optimiser holds views of the gradients
    heads.eval()


def linear(
    train: Features,
    val: Features,
    test: Features,
    *,
    sweep: Sweep = SWEEP,
    seed: int = 0,
    device: torch.device | str = "cpu",
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
) -> dict[str, ProbeResult]:
    """The whole probe: per pooling, the test accuracy of the head that did best on ``val``.

    Args:
        train: labelled.
        val: labelled; the learning rate is chosen on it.
        test: labelled; only the chosen heads are scored on it.
        sweep: the learning rates of LARS, and how long and on which batches to train.
        seed: of initial weights and order.
        device: where to train; features are copied there batch by batch.
        batches: trained on instead of the cached features of ``train``, such as those of augmented images: features
            (P, B, D) and labels (B,), as many batches as in the epochs over ``train``.

    Raises:
        UserError: labels are missing, or ``train`` has fewer than two images.
    """
    require_labels(train, val, test)
    if len(train) < 2:
        raise UserError("a linear probe needs ≥ 2 training images: check the training split")
    batch_size = min(sweep.batch_size, len(train))
    heads = LinearHeads(
        next(iter(train.pooled.values())).shape[1],
        train.num_classes,
        poolings=tuple(train.pooled),
        base_lrs=sweep.base_lrs,
        seed=seed,
    ).to(device)
    steps_per_epoch = len(train) // batch_size
    fit_heads(
        heads,
        batches or _cached(heads, train, epoch_batches(len(train), batch_size, sweep.epochs, seed, "linear")),
        batch_size=batch_size,
        steps=sweep.epochs * steps_per_epoch,
        warmup_steps=sweep.warmup_epochs * steps_per_epoch,
    )
    return choose_and_test(heads, val, test)


def choose_and_test(heads: LinearHeads, val: Features, test: Features) -> dict[str, ProbeResult]:
    """Choose a head per pooling on ``val`` (of equal ones the first), and measure its accuracy on ``test``.

    Args:
        heads: trained, in eval mode.
        val: labelled; the heads are chosen on it.
        test: labelled; only the chosen heads are scored on it.

    Raises:
        UserError: labels are missing.
    """
    require_labels(val, test)
    validated, tested = _predict(heads, val), _predict(heads, test)  # (P, L, M)
    results = {}
    for index, pooling in enumerate(heads.poolings):
        accuracies = [accuracy_of(predicted, val.labels) for predicted in validated[index]]
        chosen = accuracies.index(max(accuracies))
        results[pooling] = probe_result(
            "linear",
            pooling,
            per_seed=[accuracy_of(tested[index, chosen], test.labels)],
            num_images=len(test),
            setting={"base_lr": heads.base_lrs[chosen]},
            validation=dict(zip(heads.base_lrs, accuracies, strict=True)),
        )
    return results


@torch.no_grad()
def _predict(heads: LinearHeads, features: Features) -> Tensor:
    """The class that each head gives to each image: (P, L, M) int64 on the CPU."""
    every = torch.arange(len(features)).split(heads.rows_at_a_time())
    parts = [heads.classify(heads.normalize(rows)).argmax(3).cpu() for rows, _ in _cached(heads, features, every)]
    return torch.cat(parts, 2)


def _lars(heads: LinearHeads, rates: Sequence[float]) -> Lars:
    """LARS on views of the stack, one per head, so that each head has its own trust ratio.

    As in the published recipe, biases take plain momentum steps. ``always_adapt`` turns the trust ratio on: without
    weight decay, timm's LARS has none.
    """
    groups = []
    for stack, adapt in ((heads.weight, True), (heads.bias, False)):
        stack.grad = torch.zeros_like(stack)
        for pooling in range(len(heads.poolings)):
            for head, rate in enumerate(rates):
                view = stack.detach()[pooling, head]
                view.grad = stack.grad[pooling, head]
                groups.append({"params": [view], "lr": rate, "always_adapt": adapt})
    return Lars(groups, momentum=0.9, weight_decay=0.0, trust_coeff=0.001)


def _cached(heads: LinearHeads, features: Features, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of cached features on the device of the heads: ids -> (P, B, D), (B,)."""
    device = heads.weight.device
    for ids in batches:
        stacked = torch.stack([features.pooled[pooling][ids] for pooling in heads.poolings])
        yield stacked.to(device, torch.float32), features.labels[ids].to(device)
