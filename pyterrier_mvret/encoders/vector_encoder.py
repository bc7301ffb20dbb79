"""Text to one vector, on sentence-transformers' ``SentenceTransformer``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.encoders import checkpoints, onednn, settings
from pyterrier_mvret.encoders.opened import OpenedOnUse

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from pyterrier_mvret.encoders.forward import Task
    from pyterrier_mvret.encoders.vector_stages import VecDocEncoder, VecQueryEncoder

Floats = npt.NDArray[np.float32]


class VectorEncoder(OpenedOnUse["SentenceTransformer"]):
    """Encodes queries and documents as one vector each.

    Args:
        name: a folder, a name on the Hub, or a ``SentenceTransformer`` already in memory, which is used as it is: all
            arguments but device, revision and trust_remote_code apply to it, too, and none changes it.
        query_prefix: text put before each query; None is the checkpoint's own prompt, ``""`` none.
        doc_prefix: the same before each document.
        query_length: tokens of a query at most; None is the checkpoint's own limit.
        doc_length: tokens of a document at most.
        normalize: scale vectors to length one; False leaves them as the checkpoint makes them.
        device: ``"cpu"``, ``"cuda"``, ...; none takes an accelerator if there is one.
        batch_size: texts of a forward pass.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run code that comes with the checkpoint.
        verbose: a progress bar over batches.

    Raises:
        OSError: no such checkpoint (on first use).
        ValueError: a checkpoint that is no sentence encoder (on first use).

    >>> import pyterrier_mvret as mv
    >>> encoder = mv.VectorEncoder(mv.models.MINILM)
    >>> vectors = encoder.encode_docs(["A cat sat.", "A cat sat down.", "Rates rose."])
    >>> vectors.shape, (vectors @ vectors[0]).round(1)
    ((3, 384), array([1. , 0.9, 0. ], dtype=float32))
    """

    # what does not make another model of a checkpoint is what a model in memory leaves free
    _free_in_memory: ClassVar[tuple[str, ...]] = (
        *("query_prefix", "doc_prefix", "query_length", "doc_length", "normalize", "batch_size"),
    )
    _not_opened_by: ClassVar[tuple[str, ...]] = (*_free_in_memory, "device")

    def __init__(
        self,
        name: "str | Path | SentenceTransformer",
        *,
        query_prefix: str | None = None,
        doc_prefix: str | None = None,
        query_length: int | None = None,
        doc_length: int | None = None,
        normalize: bool = True,
        device: str | None = None,
        batch_size: int = 32,
        revision: str | None = None,
        trust_remote_code: bool = False,
        verbose: bool = False,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        for what, length in (("query_length", query_length), ("doc_length", doc_length)):
            if length is not None and length < 3:
                raise ValueError(f"{what} must leave room for a token between two special ones, got {length}")
        self.name = str(name) if isinstance(name, Path) else name
        self.query_prefix, self.doc_prefix = query_prefix, doc_prefix
        self.query_length, self.doc_length = query_length, doc_length
        self.normalize = normalize
        self.device, self.batch_size = device, batch_size
        self.revision, self.trust_remote_code = revision, trust_remote_code
        self.verbose = verbose
        if not isinstance(self.name, str):
            if not hasattr(self.name, "encode_query"):
                raise ValueError(f"expected a folder, a name on the Hub or a SentenceTransformer, got {self.name!r}")
            self._check_in_memory()

    # ------------------------------------------------------------------ verbs

    def query_encoder(self) -> "VecQueryEncoder":
        """Q (or R) with ``query`` -> the same with ``query_vec``."""
        from pyterrier_mvret.encoders.vector_stages import VecQueryEncoder

        return VecQueryEncoder(self, self.verbose)

    def doc_encoder(self, text_field: str = "text") -> "VecDocEncoder":
        """D (or R) with text -> the same with ``doc_vec``; the first stage of an indexing pipeline.

        Args:
            text_field: the column with the text.
        """
        from pyterrier_mvret.encoders.vector_stages import VecDocEncoder

        return VecDocEncoder(self, text_field, self.verbose)

    # ------------------------------------------------------------------ encoding

    def encode_queries(self, texts: Sequence[str], verbose: bool | None = None) -> Floats:
        """Vectors of queries.

        Args:
            texts: the queries; equal ones are encoded once, an empty one has a vector as any other.
            verbose: a progress bar over batches; none means the encoder's own setting.

        Returns:
            (texts, dim) float32, in the order given; (0, 0) for no texts, for which nothing is loaded.

        Raises:
            ValueError: one string instead of a list, or vectors that are not finite.

        >>> import pyterrier_mvret as mv
        >>> mv.VectorEncoder(mv.models.MINILM).encode_queries(["a cat", "", "a cat"]).shape
        (3, 384)
        """
        return self._encode(texts, "query", verbose)

    def encode_docs(self, texts: Sequence[str], verbose: bool | None = None) -> Floats:
        """Vectors of documents; arguments and result as for queries."""
        return self._encode(texts, "document", verbose)

    def _encode(self, texts: Sequence[str], task: "Task", verbose: bool | None) -> Floats:
        if isinstance(texts, str):
            raise ValueError("expected a list of texts, got one string")
        if not len(texts):  # nothing to do: nothing is loaded
            return np.empty((0, 0), dtype=np.float32)
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        vectors = self._forward(list(place), task, self.verbose if verbose is None else verbose)
        odd = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(odd):
            raise ValueError(f"{self._label}: the vector of {list(place)[odd[0]]!r} is not finite; damaged checkpoint?")
        return vectors[[place[text] for text in texts]]

    def _forward(self, texts: list[str], task: "Task", verbose: bool) -> Floats:
        """Vectors of texts as the model makes them, each at its place."""
        model = self.model
        # the model's own limit is not changed: it may be in use elsewhere
        length = self.query_length if task == "query" else self.doc_length
        more: dict[str, Any] = {} if length is None else {"processing_kwargs": {"text": {"max_length": length}}}
        encode: Any = model.encode_query if task == "query" else model.encode_document
        training = model.training
        try:
            with onednn.linear_layers(model):
                vectors = encode(
                    texts,
                    prompt=self._prefixes()[task],
                    batch_size=self.batch_size,
                    normalize_embeddings=self.normalize,
                    show_progress_bar=verbose,
                    **more,
                )
        finally:
            model.train(training)
        return np.ascontiguousarray(vectors, dtype=np.float32)

    def _prefixes(self) -> dict[str, str]:
        """What goes before a text of each task."""
        own = checkpoints.prompts_of(self.model)
        given = {"query": self.query_prefix, "document": self.doc_prefix}
        return {task: own[task] if prefix is None else prefix for task, prefix in given.items()}

    # ------------------------------------------------------------------ identity

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return int(self.model.get_embedding_dimension() or self.encode_docs(["probe"]).shape[1])

    def _form(self) -> str:
        """What the vectors are beyond what weights say: pooling, activations, length."""
        from sentence_transformers.base.modules import Normalize

        model = self.model
        layers: list[Any] = [m for m in list(model)[1:] if not (self.normalize and isinstance(m, Normalize))]
        modules = [(type(m).__name__, m.get_config_dict() if hasattr(m, "get_config_dict") else {}) for m in layers]
        return json.dumps([bool(self.normalize), model.truncate_dim, modules], sort_keys=True, default=str)

    def _state(self) -> Any:
        return self._form(), settings.tensor_state(self.model)

    def _digest_anew(self) -> str:
        return settings.weights_digest(self.model, self._form())

    def describe(self) -> dict[str, Any]:
        """Everything that fixes the vectors, as plain data; stored with an index and compared when it grows."""
        model, prefixes = self.model, self._prefixes()
        return {
            "space": self.space,
            "name": self._label,
            "revision": self.revision,
            "dim": self.dim,
            "query_prefix": prefixes["query"],
            "query_length": self.query_length or model.max_seq_length,
            "document": {"prefix": prefixes["document"], "length": self.doc_length or model.max_seq_length},
            "normalize": bool(self.normalize),
        }

    # ------------------------------------------------------------------ loading

    def _open(self, name: str) -> "SentenceTransformer":
        from sentence_transformers import SentenceTransformer

        self._check_revision(name, self.revision)
        folder = checkpoints.local_folder(name, self.revision, None, self.trust_remote_code)
        layout = checkpoints.detect(folder)
        if layout != "sentence":
            raise ValueError(
                f"{folder} is no sentence encoder (it does not say how a text becomes one vector); to take the mean "
                "of token states, pass SentenceTransformer(folder) itself"
            )
        with checkpoints.naming(folder):
            model = SentenceTransformer(
                str(folder), device=self.device, trust_remote_code=self.trust_remote_code, local_files_only=True
            )
        self._at = self.device
        return model.eval()
