"""Heads that the tests go through, and how they are used."""

import torch

import pyterrier_mvret as mv

heads = mv.heads
TEXTS = ["a cat sat on the mat", "rain fell", "?", ""]
ACTS = ("identity", "relu", "gelu", "silu")
ALL = [
    heads.Linear(4),
    *(heads.FFN(4, 3, 1.5, act, residual) for act in ACTS for residual in (None, "layer", "skip")),
    *(heads.GLU(4, 1.5, act) for act in (*ACTS, "sigmoid")),
]
LINEAR = [
    heads.Linear(4),
    *(heads.FFN(4, layers, 1.5, residual=r) for layers in (1, 2, 3, 4) for r in (None, "layer", "skip")),
    heads.FFN(4, 3, 1, residual="layer"),  # the first residual needs no map either
]


def encoder(folder, head, **settings):
    return mv.TokenEncoder(folder, init_projection=head, device="cpu", **settings)


def project(modules, states):
    features = {"token_embeddings": torch.as_tensor(states)}
    with torch.no_grad():
        for module in modules:
            features = module(features)
    return features["token_embeddings"].numpy()
