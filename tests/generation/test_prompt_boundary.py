"""The boundary of prompt and completion: no space is lost or doubled, with any kind of tokenizer."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from conftest import FABLES, random_model
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gpt2tg.checkpoint.text_stream import TextStream
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.generation.filter_chain import token_biases
from gpt2tg.generation.generator import Generator, load
from gpt2tg.generation.visible_text import VisibleText
from gpt2tg.inspection.tokens import inspect_sample, inspect_text, next_token
from gpt2tg.options import DecodingOptions, decoding_options
from gpt2tg.session import Front, Session
from gpt2tg.session.loop import run
from gpt2tg.session.style import Style

SPECIAL = ["<unk>", "</s>"]

PROMPTS = ["The owl", "Two bells", "A", "the map "]


def metaspace(scheme: str) -> Tokenizer:
    words = sorted({f"▁{word}" for line in FABLES for word in line.split()})
    letters = sorted(set("".join(words)))
    scores = [*((name, 0.0) for name in SPECIAL), *((word, -2.0) for word in words), *((x, -9.0) for x in letters)]
    raw = Tokenizer(models.Unigram(scores, unk_id=0))
    raw.add_special_tokens(SPECIAL)
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    raw.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return raw


def byte_fallback() -> Tokenizer:
    """Return a tokenizer like Llama's: a space before the first word, and byte fallback."""
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted({"▁", *"".join(FABLES)} - {" "})]
    raw = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True))
    raw.add_special_tokens(SPECIAL)
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(steps)
    return raw


def word_pieces() -> Tokenizer:
    raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    lines = [*FABLES, "it ' s don ' t , ? !"]
    raw.train_from_iterator(
        lines, trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)
    )
    return raw


def word_ends() -> Tokenizer:
    raw = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder()
    settings = dict(vocab_size=150, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False)
    raw.train_from_iterator(FABLES, trainers.BpeTrainer(**settings))
    return raw


KINDS = {
    "always": (lambda: metaspace("always"), False),
    "first": (lambda: metaspace("first"), False),
    "never": (lambda: metaspace("never"), False),
    "byte fallback": (byte_fallback, False),
    "word pieces": (word_pieces, False),
    "cleaned up": (word_pieces, True),
    "word ends": (word_ends, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_text_is_what_decoding_adds_to_the_prompt(kind: str) -> None:
    """Random tokens, including special ones and invalid bytes, against transformers' decode."""
    make, cleans_up = KINDS[kind]
    raw, chance = make(), random.Random(3)
    theirs = PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=cleans_up)
    ours, size = TextTokenizer(raw, 1, cleans_up), raw.get_vocab_size()
    for _ in range(150):
        prompt = ours.encode_prompt(chance.choice(["", "The owl", "Nobody ", "an é字 it '", "</s>", "it 's "]))
        new = [chance.choice([chance.randrange(size), chance.randrange(2, 20)]) for _ in range(chance.randrange(1, 30))]
        whole, before = (theirs.decode(ids, skip_special_tokens=True) for ids in ([*prompt, *new], prompt))
        stream, at_once = TextStream(ours, prompt), TextStream(ours, prompt)
        pieces = [stream.push(token) for token in new]
        at_once.extend(new)
        assert at_once.finish() == whole[len(before) :]
        assert "".join(pieces) + stream.finish() == whole[len(before) :] == ours.decode_after(prompt, new)


def test_byte_fallback_is_shown_when_its_run_ends() -> None:
    """One invalid byte makes its whole run of bytes unreadable, so nothing is shown before the run ends."""
    tokenizer = TextTokenizer(byte_fallback(), 1)
    fox, broken = tokenizer.encode("🦊", continues=True), tokenizer.raw.token_to_id("<0xF0>")
    t = tokenizer.raw.token_to_id("t")
    whole, cut = TextStream(tokenizer), TextStream(tokenizer)
    assert [whole.push(token) for token in [*fox[-4:], t]] == ["", "", "", "", "🦊t"]
    assert "".join(cut.push(token) for token in [*fox[-4:], broken, t]) == 5 * "\N{REPLACEMENT CHARACTER}" + "t"


@pytest.mark.parametrize("kind", ["always", "first", "never", "byte fallback"])
def test_text_encoded_in_two_parts_decodes_to_the_same(kind: str) -> None:
    """Training encodes a prompt and its completion in this way."""
    tokenizer = TextTokenizer(KINDS[kind][0](), 1)
    for prompt, completion in [("The owl", " sold"), ("The ow", "l sold"), ("Two", " bells a"), ("the map", "")]:
        ids = [*tokenizer.encode(prompt), *tokenizer.encode(completion, continues=True)]
        assert tokenizer.decode(ids) == prompt + completion


def test_text_after_a_special_token_is_encoded_as_in_the_whole() -> None:
    tokenizer = TextTokenizer(metaspace("always"), 1)
    whole = tokenizer.encode("The owl</s>bells")
    assert [*tokenizer.encode("The ow"), *tokenizer.encode("l</s>bells", continues=True)][-2:] == whole[-2:]


# --- a whole model ---


@pytest.fixture(scope="module")
def spaced_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer handles spaces as SentencePiece does."""
    directory = tmp_path_factory.mktemp("spaced")
    raw = metaspace("always")
    random_model(vocab_size=raw.get_vocab_size(), eos_token_id=1, bos_token_id=1).save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>").save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def spaced(spaced_dir: Path) -> Generator:
    return load(str(spaced_dir))


def options(decoding: str, **settings: object) -> DecodingOptions:
    return decoding_options(
        {"decoding": decoding, "max_new_tokens": 12, "suppress_eos": True, "num_sequences": 1, **settings}
    )


@pytest.mark.parametrize("decoding", ["greedy", "sample", "beam", "contrastive"])
def test_completions_keep_their_first_space(spaced: Generator, spaced_dir: Path, decoding: str) -> None:
    theirs = PreTrainedTokenizerFast.from_pretrained(spaced_dir, local_files_only=True)
    began_with_space = 0
    for prompt in PROMPTS:
        given = options(decoding, seed=5) if decoding == "sample" else options(decoding)
        sample = spaced.generate(prompt, given)[0]
        before = theirs(prompt)["input_ids"]
        whole, known = (theirs.decode(ids, skip_special_tokens=True) for ids in ([*before, *sample.ids], before))
        assert sample.completion == whole[len(known) :]
        assert "".join(chunk.text for chunk in spaced.stream(prompt, given)) == sample.completion
        shown = (token.text for token in inspect_sample(spaced, sample) if token.id not in spaced.tokenizer.special)
        assert "".join(shown) == whole[len(known) :]
        began_with_space += sample.completion.startswith(" ")
    assert began_with_space


def test_candidates_show_their_leading_space(spaced: Generator, spaced_dir: Path) -> None:
    theirs = PreTrainedTokenizerFast.from_pretrained(spaced_dir, local_files_only=True)
    ids = theirs("The owl")["input_ids"]
    for prompt, before in (("The owl", ids), ("", [1])):
        known = theirs.decode(before, skip_special_tokens=True)
        shown = {candidate.id: candidate.text for candidate in next_token(spaced, prompt, 40).candidates}
        for token in shown.keys() - {0, 1}:
            assert shown[token] == theirs.decode([*before, token], skip_special_tokens=True)[len(known) :]
        assert shown.keys() <= {0, 1} or any(text.startswith(" ") for text in shown.values()) == (prompt != "")


def test_stop_string_may_begin_with_the_first_tokens_space(spaced: Generator) -> None:
    whole = (spaced.generate(prompt, options("greedy"))[0] for prompt in PROMPTS)
    sample = next(sample for sample in whole if sample.completion.startswith(" "))
    stop = sample.completion[:3]
    stopped = spaced.generate(sample.prompt, options("greedy", stop=(stop,), keep_stop=True))[0]
    assert (stopped.completion, stopped.finish_reason) == (stop, "stop")


def test_session_turns_keep_the_spaces_between_them(spaced: Generator) -> None:
    """The text of two turns is what its tokens decode to, including the spaces between them."""
    said: list[str] = []
    lines = iter(["The owl", "/continue", "/quit"])
    front = Front(lambda: next(lines), lambda text: None, said.append, None, Style(), lambda: 80, True)
    session = Session(spaced, options("greedy", max_new_tokens=6), "spaced", front)
    run(session)
    first, second = session.text.turns
    tokenizer = spaced.tokenizer
    ids = tokenizer.encode_prompt("The owl")
    assert first.written == tokenizer.decode([*ids, *first.ids])[len("The owl") :]
    again = tokenizer.encode_prompt("The owl" + first.written)
    assert second.written == tokenizer.decode([*again, *second.ids])[len("The owl" + first.written) :]


@pytest.mark.parametrize("kind", ["always", "byte fallback"])
def test_words_are_banned_with_and_without_a_space(kind: str) -> None:
    tokenizer = TextTokenizer(KINDS[kind][0](), 1)
    within_a_word = tokenizer.encode("ao")[-1]
    assert (within_a_word,) in token_biases({"o": 1.0}, tokenizer)


# --- special tokens ---


@pytest.fixture(scope="module")
def special_dir(model_dir: Path, tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with an additional special token, id 300, which it often generates."""
    directory = tmp_path_factory.mktemp("special")
    raw = Tokenizer.from_str(tokenizer.raw.to_str())
    raw.add_special_tokens([AddedToken("<sep>", special=True, normalized=False)])
    model = random_model(vocab_size=301)
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>").save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def with_sep(special_dir: Path) -> Generator:
    return load(str(special_dir))


def drawn_with_sep(generator: Generator) -> tuple[DecodingOptions, list[int]]:
    """Return options with which the special token occurs within the text, and the ids of the text."""
    for seed in range(300):
        given = options("sample", max_new_tokens=40, seed=seed)
        ids = list(generator.generate("The owl", given)[0].ids)
        if 300 in ids[3:-3] and ids.index(300) > 2:
            return given, ids
    raise AssertionError("no text has the token")


def test_hidden_special_token_can_be_a_stop_string(with_sep: Generator) -> None:
    given, ids = drawn_with_sep(with_sep)
    first = ids.index(300)
    assert "<sep>" not in with_sep.generate("The owl", given)[0].completion
    for keep in (False, True):
        stopping = decoding_options({**vars(given), "stop": ("<sep>",), "keep_stop": keep})
        sample = with_sep.generate("The owl", stopping)[0]
        assert (list(sample.ids), sample.finish_reason) == (ids[: first + 1], "stop")
        assert sample.completion == with_sep.tokenizer.decode(ids[:first]) + ("<sep>" if keep else "")
        assert "".join(chunk.text for chunk in with_sep.stream("The owl", stopping)) == sample.completion


def test_stop_string_may_combine_text_and_a_special_token(special_dir: Path) -> None:
    tokenizer = load(str(special_dir)).tokenizer
    ids = tokenizer.encode("an owl<sep>a fox.<sep>Two")
    for stop, text in (("fox.<sep>", "an owla "), ("<sep>T", "an owla fox."), ("owl<sep>a", "an ")):
        visible = VisibleText(tokenizer, [stop])
        for token in ids:
            visible.push(token)
        visible.finish()
        assert visible.shown == text


def test_special_tokens_show_their_names_in_tables(with_sep: Generator) -> None:
    texts = [token.text for token in inspect_text(with_sep, "an owl<sep>", alternatives=2)]
    assert "".join(texts) == "an owl<sep>"
    shown = {candidate.id: candidate.text for candidate in next_token(with_sep, "The owl", 301).candidates}
    assert (shown[300], shown[0]) == ("<sep>", "<|endoftext|>")


def test_end_token_that_is_a_word_stays_in_the_text(model_dir: Path, tmp_path: Path) -> None:
    """As in transformers: only special tokens decode to nothing."""
    shutil.copytree(model_dir, tmp_path, dirs_exist_ok=True)
    free = load(str(model_dir)).generate("The owl", options("greedy"))[0]
    word = free.ids[4]
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [0, word]}))
    ended = load(str(tmp_path)).generate("The owl", decoding_options({"decoding": "greedy", "max_new_tokens": 12}))[0]
    ids = list(free.ids[: free.ids.index(word) + 1])
    assert (list(ended.ids), ended.finish_reason) == (ids, "eos")
    assert ended.completion == load(str(model_dir)).tokenizer.decode(ids)
