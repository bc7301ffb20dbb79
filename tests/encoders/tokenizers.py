"""A small tokeniser of every family that checkpoints use, trained on a few lines."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from tests import checkpoints

CORPUS = [
    "The cat sat. A dog, ran!  What is on the mat?",
    "Ünïcode Á é e\u0301 ñ, naïve coöperation; straße ﬁne ½ of it.",
    "Rain fell on the blue sky\tand on the mat.\n\nWhere was it? In the rain.",
    "Smile \U0001f600 and 日本語。 “Quoted,” she said — then left…",
] * 3
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def _template(tokenizer):
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    return processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)


def wordpiece(folder):
    """BERT: lower-cased, without accents."""
    (folder / "vocab.txt").write_text("\n".join(checkpoints.VOCAB))
    return BertTokenizer(str(folder / "vocab.txt"))


def byte_bpe(prefix: bool, trim: bool, normal: bool = False):
    """GPT-2, RoBERTa, ModernBERT: a blank belongs to the token behind it, and to its offset unless that is trimmed."""
    tokenizer = Tokenizer(models.BPE())
    if normal:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    ends = ("[SEP]", tokenizer.token_to_id("[SEP]")), ("[CLS]", tokenizer.token_to_id("[CLS]"))
    if trim:
        tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=prefix)
    else:
        tokenizer.post_processor = _template(tokenizer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def unigram():
    """XLM-R, mE5, T5: sentencepiece's normalisation, and words that begin with a mark for the blank."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = _template(tokenizer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def fallback_bpe():
    """Llama, Gemma: blanks are marks in words, unknown characters fall back to bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="[UNK]", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=[*SPECIAL, *(f"<0x{b:02X}>" for b in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator([f"▁{line.replace(' ', '▁')}" for line in CORPUS], trainer)
    tokenizer.post_processor = _template(tokenizer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def words():
    """Whole words and signs, unknown ones alike."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    tokenizer.post_processor = _template(tokenizer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


FAMILIES = {
    "wordpiece": wordpiece,
    "bytes": lambda _: byte_bpe(prefix=False, trim=False),
    "bytes, prefix": lambda _: byte_bpe(prefix=True, trim=False),
    "bytes, trimmed": lambda _: byte_bpe(prefix=True, trim=True),
    "bytes, NFC": lambda _: byte_bpe(prefix=False, trim=False, normal=True),
    "unigram": lambda _: unigram(),
    "byte fallback": lambda _: fallback_bpe(),
    "words": lambda _: words(),
}
