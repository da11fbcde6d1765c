"""Small parts of the transformers library."""

import pytest


def tokenizer(text, *special, **options):
    """A tokenizer of bytes and of what is frequent in a text, with special tokens."""
    hf, library = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    letters = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<eos>", *special], initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator([text], trainer)
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", **options)
