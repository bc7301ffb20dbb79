"""Text to token vectors, on sentence-transformers' ``MultiVectorEncoder``."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyterrier as pt

from pyterrier_mvret.encoders import batches, checkpoints, heads, latents, markers, openvino, salience, settings
from pyterrier_mvret.encoders.forward import Fields, Task, fields_of
from pyterrier_mvret.encoders.opened import OpenedOnUse
from pyterrier_mvret.encoders.token_batch import TokenBatch

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

    from pyterrier_mvret.encoders.importance import Importance

_DTYPES = ("float32", "bfloat16", "float16")
_BACKENDS = ("torch", "openvino")


class TokenEncoder(OpenedOnUse["MultiVectorEncoder"]):
    """Encodes queries and documents as one vector a token.

    Opens every public layout of a multi-vector checkpoint (Stanford ColBERT, PyLate, sentence-transformers) and plain
    sentence encoders, whose token states are then used as they are. A projection that was never trained is attached
    only where ``init_projection`` asks for it. Settings left at None are the checkpoint's own; where it states none,
    the defaults of the code that wrote it (query length 32; document length 220 for Stanford, 180 for PyLate).

    Args:
        name: a folder, a name on the Hub, or a ``MultiVectorEncoder`` already in memory.
        init_projection: a new, untrained projection for an encoder without one, to be trained: its dimensions, or a
            head of :mod:`pyterrier_mvret.heads`.
        query_prefix: text or marker put before each query, such as ``"[Q] "``; ``""`` for none.
        doc_prefix: the same before each document.
        query_length: tokens of a query at most (exactly, with expansion), markers included.
        doc_length: tokens of a document at most, markers included.
        query_expansion: pad queries with [MASK] to ``query_length`` and score the padding (ColBERT section 3.2).
        attend: whether the other query tokens see the expansion (jina-colbert-v2) or not (ColBERT's own code).
        skiplist: document tokens that are not scored: words, or ``"punctuation"``; ``[]`` for none.
        normalize: scale token vectors to length one.
        token_pooling: keep about one of this many document vectors by hierarchical clustering.
        latents: a new, untrained latent head, or settings for the checkpoint's own: see :class:`Laspar`.
        device: ``"cpu"``, ``"cuda"``, ...; none takes an accelerator if there is one.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"`` arithmetic in the model; vectors come out as float32.
        backend: what computes the transformer: ``"torch"``, or ``"openvino"`` (extra ``openvino``; CPU only).
        batch_size: size of a forward pass, as the tokens of so many texts of 128. Passes are cut by tokens: many short
            texts or few long ones. On a CPU they end at 512 tokens a thread, which stay in its cache.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run code that comes with the checkpoint.
        cache_folder: where the Hub's files are kept.

    Raises:
        OSError: no such checkpoint (on first use).
        ValueError: a checkpoint that has no token vectors (on first use).

    >>> import pyterrier_mvret as mv
    >>> encoder = mv.TokenEncoder(mv.models.MINILM)
    >>> batch = encoder.encode_docs(["A cat sat.", ""])
    >>> batch.vectors.shape, batch.offsets.tolist()
    ((8, 384), [0, 6, 8])
    >>> batch.spans[:6].tolist()
    [[0, 0], [0, 1], [2, 5], [6, 9], [9, 10], [0, 0]]
    """

    _not_identity: ClassVar[tuple[str, ...]] = ("verbose", "cache_folder")
    _free_in_memory: ClassVar[tuple[str, ...]] = ("batch_size",)
    _not_opened_by: ClassVar[tuple[str, ...]] = ("batch_size", "device")

    def __init__(
        self,
        name: "str | Path | MultiVectorEncoder",
        init_projection: int | heads.Head | None = None,
        *,
        query_prefix: str | None = None,
        doc_prefix: str | None = None,
        query_length: int | None = None,
        doc_length: int | None = None,
        query_expansion: bool | None = None,
        attend: bool | None = None,
        skiplist: Sequence[str] | Literal["punctuation"] | None = None,
        normalize: bool | None = None,
        token_pooling: float | None = None,
        latents: latents.LatentSettings | None = None,
        device: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        backend: Literal["torch", "openvino"] = "torch",
        batch_size: int = 32,
        revision: str | None = None,
        trust_remote_code: bool = False,
        cache_folder: str | None = None,
        verbose: bool = False,
    ):
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
        if backend not in _BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}")
        heads.requested(init_projection)  # says at once what is no head
        if backend == "openvino":
            openvino.check(dtype, device)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        for what, length in (("query_length", query_length), ("doc_length", doc_length)):
            if length is not None and length < 4:
                raise ValueError(f"{what} must leave room for markers and a token (at least 4), got {length}")
        if isinstance(skiplist, str) and skiplist != "punctuation":
            raise ValueError(f"skiplist must be a list of words or 'punctuation', got {skiplist!r}")
        self.name = str(name) if isinstance(name, Path) else name
        self.init_projection = init_projection
        self.query_prefix, self.doc_prefix = query_prefix, doc_prefix
        self.query_length, self.doc_length = query_length, doc_length
        self.query_expansion, self.attend = query_expansion, attend
        self.skiplist = skiplist
        self.normalize = normalize
        self.token_pooling, self.latents = token_pooling, latents
        self.device, self.dtype, self.backend, self.batch_size = device, dtype, backend, batch_size
        self.revision, self.trust_remote_code, self.cache_folder = revision, trust_remote_code, cache_folder
        self.verbose = verbose
        if not isinstance(self.name, str):
            if not hasattr(self.name, "named_parameters"):
                raise ValueError(
                    f"expected a folder, a name on the Hub or a MultiVectorEncoder, got {self.name!r} "
                    "(of a model, pass its .encoder)"
                )
            self._check_in_memory()

    # ------------------------------------------------------------------ encoding

    def encode_queries(
        self,
        texts: Sequence[str],
        verbose: bool | None = None,
        importance: "Importance | None" = None,
        *,
        prefix: str | Sequence[str] | None = None,
        whole: bool = False,
    ) -> TokenBatch:
        """Token vectors of queries; expansion rows, markers and separators are scored and so included.

        Args:
            texts: the queries; equal ones are encoded once, an empty one still has its special tokens.
            verbose: a progress bar over batches; none means the encoder's own setting.
            importance: what the batch's ``importance`` holds; none means the outputs of the model's salience heads,
                where it has any.
            prefix: what goes before each query in place of the encoder's own, such as another marker: one for all, or
                one a query.
            whole: encode as many tokens as the model takes, and no expansion, so that every part of a query has its
                rows (generated sentences, whose propositions are scored).

        Returns:
            A batch with one entry a text, in the order given: vectors (tokens, dim) float32.

        Raises:
            ValueError: one string instead of a list, a marker that the tokeniser does not know, or an importance that
                this encoder cannot give.

        >>> import pyterrier_mvret as mv
        >>> encoder = mv.TokenEncoder(mv.models.MINILM, query_expansion=True, query_length=8)
        >>> batch = encoder.encode_queries(["who sat?"])
        >>> encoder.tokens(batch.token_ids)
        ['[CLS]', 'who', 'sat', '?', '[SEP]', '[MASK]', '[MASK]', '[MASK]']
        """
        return self._encode(texts, "query", verbose, importance, prefix, whole)

    def encode_docs(
        self, texts: Sequence[str], verbose: bool | None = None, importance: "Importance | None" = None
    ) -> TokenBatch:
        """Token vectors of documents, without the tokens of the skiplist; arguments and result as for queries.

        >>> import pyterrier_mvret as mv
        >>> encoder = mv.TokenEncoder(mv.models.MINILM, skiplist="punctuation", doc_length=6)
        >>> batch = encoder.encode_docs(["A cat, it sat on the mat."])
        >>> encoder.tokens(batch.token_ids), batch.vectors.shape
        (['[CLS]', 'a', 'cat', 'it', '[SEP]'], (5, 384))
        """
        return self._encode(texts, "document", verbose, importance)

    def _encode(
        self,
        texts: Sequence[str],
        task: Task,
        verbose: bool | None,
        importance: "Importance | None",
        prefix: str | Sequence[str] | None = None,
        whole: bool = False,
    ) -> TokenBatch:
        if isinstance(texts, str):
            raise ValueError("expected a list of texts, got one string")
        if not len(texts):  # nothing to do: nothing is loaded
            return TokenBatch.of_nothing(ranked=importance is not None)
        inputs = batches.with_prefix(self.model, texts, task)
        if prefix is not None:
            prefixes = [prefix] * len(texts) if isinstance(prefix, str) else prefix
            for one in set(prefixes):
                markers.check_whole(self.model.tokenizer, one, "the")
            inputs = [batches.Input(*pair) for pair in zip(prefixes, texts, strict=True)]
        # equal texts are encoded once
        place = {one: i for i, one in enumerate(dict.fromkeys(inputs))}
        parts: list[Fields] = [{}] * len(place)
        what = "queries" if task == "query" else "documents"
        show = self.verbose if verbose is None else verbose
        with importance.watching(self.model) if importance is not None else nullcontext():
            encoded = self._forward(list(place), task, whole)
            for i, part in pt.tqdm(encoded, total=len(place), desc=f"encoding {what}", unit="text", disable=not show):
                parts[i] = part
        rows = [parts[place[one]] for one in inputs]
        fields = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        offsets = np.cumsum([0, *(len(row["vectors"]) for row in rows)], dtype=np.int64)
        batch = TokenBatch(offsets=offsets, **fields)
        return batch if importance is None else replace(batch, importance=importance.scores(batch))

    def _forward(self, inputs: list[batches.Input], task: Task, whole: bool) -> Iterator[tuple[int, Fields]]:
        """Places of inputs, each with what its batch holds of it; in no order to rely on."""
        model = self.model
        training = model.training
        model.eval()  # no dropout, also between two steps of training
        try:
            for places, features in batches.batches(model, inputs, task, self.batch_size, whole):
                yield from zip(places, fields_of(model, features, task), strict=True)
        finally:
            model.train(training)

    def tokens(self, token_ids: npt.NDArray[Any]) -> list[str]:
        """The vocabulary's spelling of token ids."""
        return list(self.model.tokenizer.convert_ids_to_tokens(np.asarray(token_ids).tolist()))

    # ------------------------------------------------------------------ identity

    @property
    def dim(self) -> int:
        """Dimensions of a token vector."""
        return int(self.model.get_embedding_dimension() or 0)

    @property
    def has_salience(self) -> bool:
        """Whether the model has salience heads; read from the checkpoint's list of modules where it is not open."""
        if not isinstance(self.name, str):
            return salience.heads_of(self.name) is not None
        if self._opened is not None:
            return salience.heads_of(self.model) is not None
        folder = checkpoints.local_folder(self.name, self.revision, self.cache_folder, self.trust_remote_code)
        return checkpoints.names_module(folder, checkpoints.SALIENCE)

    def _state(self) -> Any:
        return settings.state(self.model)

    def _digest_anew(self) -> str:
        return settings.digest(self.model)

    def describe(self) -> dict[str, Any]:
        """Everything that fixes the vectors, as plain data; stored with an index and compared when it grows."""
        return {
            "space": self.space,
            "name": self._label,
            "revision": self.revision,
            "dim": self.dim,
            "dtype": self.dtype,
            "backend": self.backend,
            **settings.describe(self.model),
        }

    # ------------------------------------------------------------------ loading and saving

    @property
    def model(self) -> "MultiVectorEncoder":
        """The model, opened on first use, and again when a setting was changed since.

        A model that was passed in is used as it is and never changed, so it takes no settings here.
        """
        if self.backend == "openvino" and isinstance(self.name, str):
            openvino.check(self.dtype, self.device)
        return super().model

    def _open(self, name: str) -> "MultiVectorEncoder":
        import torch
        from sentence_transformers.util import get_device_name

        self._check_revision(name, self.revision)
        folder = checkpoints.local_folder(name, self.revision, self.cache_folder, self.trust_remote_code)
        layout = checkpoints.detect(folder)
        wanted = self.latents
        model = checkpoints.open_checkpoint(
            folder, layout, self.init_projection, self.trust_remote_code, wanted is not None
        )
        settings.apply(self, model, layout)
        if wanted is not None:
            wanted(model)
            latents.warn_if_untrained(model, self._label)
        if self.backend == "openvino":
            openvino.attach(model.to("cpu").eval(), self.dtype, self._label)
        else:
            # the digest is of the weights before they are rounded
            digest = settings.digest(model) if self.dtype != "float32" else None
            model.to(device=self.device or get_device_name(), dtype=getattr(torch, self.dtype)).eval()
            if digest is not None:
                self._weights = (settings.state(model), digest)
        self._at = self.device
        settings.check_probe(model, self._label)
        return model

    def save(self, path: str | Path) -> None:
        """Writes a checkpoint in sentence-transformers' own layout; ``TokenEncoder(path)`` reads it back.

        The weights written are those that were read, also where the arithmetic is in half precision.
        """
        model = self.model
        if self.dtype != "float32" and self.backend == "torch":
            whole = copy.copy(self)
            whole.dtype = "float32"
            model = whole.model
        model.save_pretrained(str(path))

    def fold(self) -> "TokenEncoder":
        """An encoder whose head is one matrix, with equal vectors up to rounding: for heads without activations.

        It holds a copy of the model in memory, settings included; save it to open it elsewhere. Vectors differ in the
        last digits and weights in shape, so it is a space of its own: encode queries and documents with the same one.

        Raises:
            ValueError: there is no head, or it is not linear (:func:`pyterrier_mvret.heads.fold`).

        >>> import pyterrier_mvret as mv
        >>> encoder = mv.TokenEncoder(mv.models.MINILM, init_projection=mv.heads.FFN(64, residual="skip"))
        >>> folded = encoder.fold()
        >>> a, b = (e.encode_docs(["A cat sat."]).vectors for e in (encoder, folded))
        >>> a.shape, bool(abs(a - b).max() < 1e-6)
        ((6, 64), True)
        """
        if self.backend != "torch":
            raise ValueError(f"fold with backend='torch', save, and open the result with backend={self.backend!r}")
        return TokenEncoder(heads.fold(self.model), batch_size=self.batch_size, verbose=self.verbose)

    def adopt(self, model: "str | Path | MultiVectorEncoder") -> None:
        """Takes another model in place of its own, for every stage that holds this encoder.

        Settings that the model brings along (prefixes, lengths, ...) fall back to "as in the checkpoint"; what only
        says how work is done stays, where a model in memory leaves the choice.
        """
        in_memory = not isinstance(model, str | Path)
        kept = ("batch_size",) if in_memory else ("batch_size", "device", "dtype", "backend", "trust_remote_code")
        for parameter in self._parameters():
            if parameter.default is not parameter.empty and parameter.name not in kept:
                setattr(self, parameter.name, parameter.default)
        self.name = str(model) if isinstance(model, Path) else model
        self._opened = self._weights = self._at = None
