import copy

import numpy as np
import pytest
from transformers import BertConfig, BertModel

import pyterrier_mvret as mv
from pyterrier_mvret.encoders import markers
from pyterrier_mvret.encoders.markers import UnitMarker, WithoutUnitMarker, of_units
from tests import checkpoints
from tests.encoders.tokenizers import FAMILIES

QUERIES = ["who sat on the mat", "a dog", ""]


@pytest.fixture
def marked(tiny):
    """An encoder that has been given a second query marker, as before its training."""

    def make(marker, **settings):
        encoder = mv.TokenEncoder(tiny, device="cpu", **settings)
        model = copy.deepcopy(encoder.model)
        UnitMarker(marker)(model)
        return mv.TokenEncoder(model)

    return make


def ids(encoder, text, prefix=None):
    return encoder.tokens(encoder.encode_queries([text], prefix=prefix).token_ids)


def test_typed_as_text_a_marker_is_split_and_registered_it_is_one_token(minilm):
    tokenizer = copy.deepcopy(minilm.model.tokenizer)
    assert len(tokenizer.tokenize("[unused2] who")) > 2
    markers.register(tokenizer, "[unused2] ")
    assert tokenizer.tokenize("[unused2] who") == ["[unused2]", "who"]
    assert len(tokenizer) == len(minilm.model.tokenizer)  # a word of the vocabulary: it does not grow


@pytest.mark.parametrize("marker", ["[Q2]", "[unused1]"])  # a new token, and one of the vocabulary
def test_both_markers_stand_after_cls_and_begin_equal(marked, marker):
    encoder = marked(marker, doc_prefix="")
    own, second = encoder.model.prompts["query"], encoder.model.prompts[markers.UNIT]
    assert ids(encoder, "a cat")[:2] == ["[CLS]", "[unused0]"]
    assert ids(encoder, "a cat", second)[:2] == ["[CLS]", marker]
    plain, other = (encoder.encode_queries(QUERIES, prefix=prefix) for prefix in (own, second))
    np.testing.assert_array_equal(plain.vectors, other.vectors)  # the copied row makes the same queries


def test_without_an_ordinary_marker_the_second_one_begins_as_the_first_special_token(minilm):
    model = copy.deepcopy(minilm.model)
    UnitMarker("[unused2]")(model)
    table = model[0].auto_model.get_input_embeddings().weight
    place, cls = model.tokenizer.convert_tokens_to_ids(["[unused2]", "[CLS]"])
    assert (table[place] == table[cls]).all()
    assert model.prompts[markers.UNIT] == "[unused2] "


def test_a_text_may_be_a_marker(marked):
    encoder = marked("what is")
    assert ids(encoder, "a cat", encoder.model.prompts[markers.UNIT])[1:4] == ["what", "is", "a"]
    assert encoder.space == marked("it was").space  # nothing but text: no weight is another


def test_a_marker_is_saved_and_opened_with_the_checkpoint(marked, tmp_path):
    encoder = marked("[Q2]")
    encoder.save(tmp_path / "model")
    again = mv.TokenEncoder(tmp_path / "model", device="cpu")
    assert of_units(again, "auto") == of_units(again, "[Q2]") == "[Q2] "
    assert again.space.partition("#")[2] == encoder.space.partition("#")[2]
    np.testing.assert_array_equal(
        again.encode_queries(QUERIES, prefix="[Q2] ").token_ids,
        encoder.encode_queries(QUERIES, prefix="[Q2] ").token_ids,
    )
    assert again.describe()["unit_prefix"] == "[Q2] "


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"wordpiece", "words"}))
def test_a_marker_of_a_tokeniser_that_keeps_blanks(tmp_path, family):
    """ModernBERT and its kind: PyLate's own markers end with the blank, and the second one must not bring another."""
    folder = checkpoints.pylate(tmp_path / "model", expansion=False)
    tokenizer = FAMILIES[family](folder)
    tokenizer.add_tokens(["[unused0] ", "[unused1] "])
    tokenizer.add_special_tokens(
        {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    )
    checkpoints.edit(folder / "config.json", vocab_size=len(tokenizer))
    checkpoints.edit(folder / "config_sentence_transformers.json", skiplist_words=[])
    BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").unlink()
    tokenizer.save_pretrained(folder)
    encoder = mv.TokenEncoder(folder, device="cpu")
    UnitMarker("[Q2]")(encoder.model)
    prefix = encoder.model.prompts[markers.UNIT]
    own, second = (encoder.encode_queries(QUERIES, prefix=p) for p in ("[unused0] ", prefix))
    assert encoder.tokens(second.token_ids)[:2] == ["[CLS]", "[Q2]"]
    np.testing.assert_array_equal(own.vectors, second.vectors)
    np.testing.assert_array_equal(own.spans, second.spans)
    encoder.save(tmp_path / "saved")
    again = mv.TokenEncoder(tmp_path / "saved", device="cpu")
    assert of_units(again, "[Q2]") == prefix
    np.testing.assert_array_equal(again.encode_queries(QUERIES, prefix=prefix).vectors, second.vectors)


def test_a_trained_marker_is_not_begun_again(marked):
    encoder = marked("[Q2]")
    table = encoder.model[0].auto_model.get_input_embeddings().weight
    place = encoder.model.tokenizer.convert_tokens_to_ids("[Q2]")
    table.data[place] += 1
    before = table[place].clone()
    UnitMarker("[Q2]")(encoder.model)
    assert (table[place] == before).all()
    WithoutUnitMarker()(encoder.model)
    assert of_units(encoder, "auto") is None


def test_an_untrained_marker_is_an_error(marked, tiny_encoder):
    assert of_units(tiny_encoder, "auto") is None
    assert of_units(tiny_encoder, None) is None
    with pytest.raises(ValueError, match="no second query marker, and an untrained one ranks noise"):
        of_units(tiny_encoder, "[unused1]")
    with pytest.raises(ValueError, match=r"trained with the second query marker '\[Q2\]'"):
        of_units(marked("[Q2]"), "[Q3]")
    assert of_units(marked("[Q2]"), None) is None


def test_what_is_no_second_marker(tiny_encoder):
    with pytest.raises(ValueError, match="a token or a text"):
        UnitMarker(" ")
    model = copy.deepcopy(tiny_encoder.model)
    before = model[0].auto_model.get_input_embeddings().weight.clone()
    for taken, what in (("[unused0]", "query marker"), ("[unused1]", "document marker"), ("[MASK]", "special token")):
        with pytest.raises(ValueError, match=f"is .* {what} of this model: the second one must be another"):
            UnitMarker(taken)(model)
    assert (model[0].auto_model.get_input_embeddings().weight == before).all()


def test_a_checkpoint_whose_marker_is_no_token_is_refused(marked, tmp_path):
    encoder = marked("[Q2]")
    encoder.model.prompts[markers.UNIT] = "[Q7] "
    encoder.save(tmp_path / "model")
    with pytest.raises(ValueError, match="the unit marker"):
        mv.TokenEncoder(tmp_path / "model", device="cpu").encode_queries(["a"])
