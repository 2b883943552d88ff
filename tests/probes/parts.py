"""A small backbone behind the seam, and features with known structure."""

import torch
from torch import nn

from vitmae.backbones.backbone import Backbone
from vitmae.probes.features import Features
from vitmae.probes.head_training import epoch_batches
from vitmae.randomness import generator
from vitmae.tokens.patches import gather_tokens, patchify


class StandIn(Backbone):
    """One linear patch projection, prefix tokens, dropout and batch norm: all that eval mode must silence."""

    def __init__(self, has_cls=True, registers=0, grid_size=(2, 3), in_chans=3, embed_dim=6):
        super().__init__()
        self.grid_size, self.patch_size, self.embed_dim = grid_size, (2, 2), embed_dim
        self.has_cls, self.num_prefix_tokens = has_cls, int(has_cls) + registers
        self.projection = nn.Linear(4 * in_chans, embed_dim)
        self.prefix = nn.Parameter(torch.randn(1, self.num_prefix_tokens, embed_dim, generator=generator(1)))
        self.norm = nn.BatchNorm1d(embed_dim)
        self.drop = nn.Dropout(0.5)
        with torch.no_grad():
            self.projection.weight.normal_(generator=generator(2))

    @property
    def pos_embed(self):
        return torch.zeros(1, self.num_patches, self.embed_dim)

    def patch_embed(self, images, ids_keep=None):
        return self.projection(patchify(images, self.patch_size))

    def encode(self, tokens, ids=None):
        tokens = self.drop(self.norm(tokens.mT).mT)
        tokens = torch.cat([self.prefix.expand(len(tokens), -1, -1) + tokens.sum(1, keepdim=True), tokens], 1)
        return tokens if ids is None else gather_tokens(tokens, ids)


def clusters(count, num_classes=4, dim=12, spread=0.3, seed=0, poolings=("cls", "avg"), split="train"):
    """Labelled points around one random centre per class: the smaller the spread, the better separable."""
    centres = torch.randn(num_classes, dim, generator=generator(seed, "centres"))
    labels = torch.arange(count) % num_classes
    pooled = {}
    for pooling in poolings:
        noise = torch.randn(count, dim, generator=generator(seed, split, pooling))
        pooled[pooling] = centres[labels] + spread * noise
    return Features(pooled, labels)


def permuted_labels(features):
    """The same features with their labels shuffled."""
    shuffled = features.labels[torch.randperm(len(features), generator=generator(99))]
    return Features(features.pooled, shuffled, features.patches, features.grid_size)


def marked_tokens(count, num_classes=3, grid_size=(3, 4), dim=8, seed=0, split="train"):
    """Noise tokens, one of which, at a random place, carries the class of the image: no mean shows it well."""
    tokens = grid_size[0] * grid_size[1]
    marks = 4 * torch.randn(num_classes, dim, generator=generator(seed, "marks"))
    labels = torch.arange(count) % num_classes
    patches = torch.randn(count, tokens, dim, generator=generator(seed, split, "tokens"))
    places = torch.randint(tokens, (count,), generator=generator(seed, split, "places"))
    patches[torch.arange(count), places] += marks[labels]
    return Features({"avg": patches.mean(1)}, labels, patches, grid_size)


def starts_of_training(monkeypatch, module, probe):
    """For seeds 0, 0 and 1 of a probe: its first weights, and the order of its images."""
    starts = []

    def record(heads, patches, targets, loss, sweep, *key):
        weights = torch.cat([parameter.detach().flatten() for parameter in heads[0].parameters()])
        starts.append((weights, torch.cat(list(epoch_batches(len(patches), 1, 1, *key)))))

    monkeypatch.setattr(module, "fit_on_tokens", record)
    for seed in (0, 0, 1):
        probe(seed)
    return zip(*starts, strict=True)
