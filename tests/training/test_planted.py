"""Saliences are learned from relevance alone: frozen vectors, planted words that matter and words that do not."""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from pyterrier_mvret.encoders.salience_heads import SalienceHeads
from pyterrier_mvret.scoring import TopK
from pyterrier_mvret.training.alignment import AlignmentSimilarity

CONTENT, NOISE, DIM = 300, 60, 32


class Planted:
    """Documents of 6 content words and 24 of noise, queries of 2 of a document's content words and 4 of noise."""

    def __init__(self, seed):
        self.draws = torch.Generator().manual_seed(seed)
        words = self.random(CONTENT + NOISE)
        words[CONTENT:] += 0.5 * normalize(self.random(1), dim=-1)  # what a linear head can see
        self.words = normalize(words, dim=-1)

    def random(self, *shape):
        return torch.randn(*shape, DIM, generator=self.draws) / DIM**0.5

    def texts(self, count):
        """Queries and the documents that answer them, (count, tokens, dim) each; every token is a bit different."""

        def noise(tokens):
            return torch.randint(CONTENT, CONTENT + NOISE, (count, tokens), generator=self.draws)

        content = torch.stack([torch.randperm(CONTENT, generator=self.draws)[:6] for _ in range(count)])
        documents = torch.cat([content, noise(24)], dim=1)
        queries = torch.cat([content[:, :2], noise(4)], dim=1)
        return [normalize(self.words[ids] + 0.6 * self.random(*ids.shape), dim=-1) for ids in (queries, documents)]


def real(vectors):
    return torch.ones(vectors.shape[:-1], dtype=torch.bool)


def matrix(score, queries, documents):
    return score.matrix(queries, documents[:, None], real(queries), real(documents)[:, None])


def reciprocal_rank(scores):
    ranks = (scores > scores.diagonal()[:, None]).sum(1) + 1
    return torch.where(ranks <= 10, 1 / ranks, 0.0).mean().item()


def auc(importance, content):
    """How often a content token, which stand first, is above one of noise."""
    return (importance[:, :content].flatten()[:, None] > importance[:, content:].flatten()).float().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", ["alignment", "query"])
def test_heads_tell_content_from_noise(normalizer):
    planted = Planted(seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = SalienceHeads(DIM, "lp", 0.5, 0.4, 0.002)
    heads.carries = True
    weighed = AlignmentSimilarity(TopK(1), normalizer, "all", weighed=True)

    def said(texts):
        pairs = zip(("query", "document"), texts, strict=True)
        return [heads({"token_embeddings": x, "attention_mask": real(x)}, task=task) for task, x in pairs]

    def scored(out):
        return matrix(weighed, *(o["token_embeddings"] for o in out))

    adam = torch.optim.Adam(heads.parameters(), lr=1e-2)
    for _ in range(200):
        loss = cross_entropy(scored(said(planted.texts(32))) / 0.05, torch.arange(32))
        adam.zero_grad()
        loss.backward()
        adam.step()
    texts = planted.texts(200)
    with torch.no_grad():
        out = said(texts)
        with_saliences, plain = scored(out), matrix(AlignmentSimilarity(TopK(1), normalizer, "all", False), *texts)
    assert auc(out[0]["token_importance"], 2) > 0.85
    if normalizer == "query":  # the paper's lets bad matches vanish, and learns documents less well
        assert auc(out[1]["token_importance"], 6) > 0.9
        assert reciprocal_rank(with_saliences) > reciprocal_rank(plain) + 0.1
