"""Checkpoints with random weights in every public layout, and a plain encoder written against the papers' code."""

import json
import string
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

WORDS = [
    "a",
    "cat",
    "sat",
    "on",
    "the",
    "mat",
    "dog",
    "ran",
    "fast",
    "blue",
    "sky",
    "rain",
    "fell",
    "who",
    "what",
    "where",
    "is",
    "it",
    "was",
    "in",
    "of",
    "and",
]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
VOCAB += [*string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase), *WORDS[1:]]
VOCAB += [p for p in string.punctuation if p != "~"]  # one symbol is unknown, as in real vocabularies
HIDDEN, DIM = 16, 8


def backbone(folder: Path, architecture: str = "BertModel", seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCAB))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(VOCAB),
            hidden_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    edit(folder / "config.json", architectures=[architecture])
    return folder


def edit(path: Path, **changes) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **changes}))


def projection(rows: int = DIM, columns: int = HIDDEN, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def stanford(
    folder: Path, architecture: str = "HF_ColBERT", metadata: dict | None = None, pickled: bool = False
) -> Path:
    """One weight file with ``bert.*`` and ``linear.weight``, settings in ``artifact.metadata``."""
    backbone(folder, architecture)
    weights = {f"bert.{k}": v for k, v in load_file(folder / "model.safetensors").items()}
    weights["linear.weight"] = projection()
    (folder / "model.safetensors").unlink()
    if pickled:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"query_maxlen": 12, "doc_maxlen": 20, "dim": DIM, "attend_to_mask_tokens": False}
    settings |= {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "mask_punctuation": True}
    if metadata != {}:
        (folder / "artifact.metadata").write_text(json.dumps({**settings, **(metadata or {})}))
    return folder


def stanford_beside_modules(folder: Path) -> Path:
    """mxbai-colbert-large-v1: Stanford files, and a modules.json that names a Transformer alone."""
    stanford(folder, architecture="BertModel")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    # files that contradict Stanford's: a prompt, and a length that would cut documents
    edit(folder / "config_sentence_transformers.json", prompts={"query": "who ", "document": "it "})
    edit(folder / "sentence_bert_config.json", max_seq_length=7, query_length=5, document_length=6)
    return folder


def stanford_and_pylate(folder: Path, sentence_config: bool = False) -> Path:
    """answerai-colbert-small-v1: Stanford's files at the root, and modules.json with a Transformer and a Dense."""
    backbone(folder / "0_Transformer")
    stanford(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    dense(folder / "1_Dense", projection())
    if sentence_config:
        edit(folder / "config_sentence_transformers.json", query_prefix="[unused0] ", document_prefix="[unused1] ")
    return folder


def dense(folder: Path, weight: torch.Tensor, residual: torch.Tensor | None = None, use_residual: bool = False) -> None:
    folder.mkdir(parents=True)
    config = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": False}
    config |= {"activation_function": "torch.nn.modules.linear.Identity"}
    config |= {"use_residual": True} if use_residual else {}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {"linear.weight": weight} | ({} if residual is None else {"residual.weight": residual})
    save_file(weights, folder / "model.safetensors")


def pylate(
    folder: Path,
    model_type: str | None = "ColBERT",
    dense_type: str = "pylate.models.Dense.Dense",
    expansion: bool = True,
) -> Path:
    """Transformer and one Dense; with ``dense_type`` "pylate.models.Dense" as in answerai-colbert-small-v1."""
    backbone(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": dense_type},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    dense(folder / "1_Dense", projection())
    config = {"query_prefix": "[unused0] ", "document_prefix": "[unused1] ", "query_length": 12, "document_length": 20}
    config |= {"do_query_expansion": expansion, "attend_to_expansion_tokens": False}
    config |= {"skiplist_words": list(string.punctuation), "similarity_fn_name": "MaxSim"}
    config |= {"model_type": model_type} if model_type else {}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 19, "do_lower_case": False}))
    return folder


def three_dense(folder: Path) -> Path:
    """Three projections, two with residuals, no expansion (the mxbai-edge layout)."""
    pylate(folder, expansion=False)
    modules = json.loads((folder / "modules.json").read_text())[:1]
    for i in (1, 2, 3):
        modules.append({"idx": i, "name": str(i), "path": f"{i}_Dense", "type": "pylate.models.Dense.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Dense" / "model.safetensors").unlink()
    (folder / "1_Dense" / "config.json").unlink()
    (folder / "1_Dense").rmdir()
    dense(folder / "1_Dense", projection(32, HIDDEN, 1), residual=projection(32, HIDDEN, 2), use_residual=True)
    dense(folder / "2_Dense", projection(32, 32, 3), use_residual=True)
    dense(folder / "3_Dense", projection(DIM, 32, 4))
    return folder


def sentence_encoder(folder: Path) -> Path:
    backbone(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def cross_encoder(folder: Path, seed: int = 5) -> Path:
    """A transformer that reads a query and a document together, with one logit."""
    backbone(folder, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig.from_pretrained(folder, num_labels=1, initializer_range=0.5)
        BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def reference(folder: Path, text: str, task: str, heads, expand: bool = True, attend: bool = False, skip: bool = True):
    """ColBERT's own encoding of one text with transformers and torch alone: returns ids and unit vectors, scored rows.

    ``heads``: functions applied to the hidden states in turn.
    """
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_max_length=64)
    weights = load_file(folder / "model.safetensors")
    model = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False).eval()
    model.load_state_dict({k.removeprefix("bert."): v for k, v in weights.items() if not k.startswith("linear.")})
    length, marker = (12, "[unused0]") if task == "query" else (20, "[unused1]")
    ids = tokenizer(text, truncation=True, max_length=length - 1)["input_ids"]
    ids.insert(1, tokenizer.convert_tokens_to_ids(marker))
    mask = [1] * len(ids)
    if task == "query" and expand:
        mask += [int(attend)] * (length - len(ids))
        ids += [tokenizer.mask_token_id] * (length - len(ids))
    with torch.inference_mode():
        states = model(input_ids=torch.tensor([ids]), attention_mask=torch.tensor([mask])).last_hidden_state[0]
        for head in heads:
            states = head(states)
        vectors = torch.nn.functional.normalize(states, dim=-1).numpy()
    ids = np.array(ids)
    if task == "document" and skip:
        known = set(tokenizer.convert_tokens_to_ids([p for p in string.punctuation if p != "~"]))
        kept = np.array([i not in known for i in ids])
        return ids[kept], vectors[kept]
    return ids, vectors
