"""Make a tiny Whisper with random weights, for tests/live: FOLDER/audio, which takes 10 seconds of audio at a time.

usage: make_speech_model.py FOLDER; with vLLM's own Python. To read audio, vLLM needs soundfile and av beside it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES

SECONDS = 10
TEXT = ["What is the capital of France? The capital of France is Paris."] * 20
SPECIAL = [
    *("<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES), "<|translate|>"),
    *("<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|prev|>", "<|nospeech|>", "<|notimestamps|>"),
]
STAMPS = [f"<|{number / 50:.2f}|>" for number in range(SECONDS * 50 + 1)]


def make_tokenizer(folder: Path) -> WhisperTokenizer:
    """Train a byte-level BPE tokenizer with Whisper's special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    trained = json.loads(bpe.to_str())["model"]
    vocabulary = dict(trained["vocab"])
    for token in (*SPECIAL, *STAMPS):
        vocabulary[token] = len(vocabulary)
    merges = [tuple(merge) for merge in trained["merges"]]
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=merges, additional_special_tokens=SPECIAL[1:])
    tokenizer.add_tokens([AddedToken(stamp, normalized=False) for stamp in STAMPS])
    tokenizer.save_pretrained(folder)
    return tokenizer


folder = Path(sys.argv[1]) / "audio"
torch.manual_seed(0)
made = make_tokenizer(folder)
WhisperFeatureExtractor(chunk_length=SECONDS).save_pretrained(folder)
end = made.convert_tokens_to_ids("<|endoftext|>")
sizes = {
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 128,
    "max_source_positions": 50 * SECONDS,
}
sizes |= {"decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 128, "max_target_positions": 448}
ends = {
    "bos_token_id": end,
    "eos_token_id": end,
    "pad_token_id": end,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
}
start = made.convert_tokens_to_ids("<|startoftranscript|>")
config = WhisperConfig(vocab_size=len(made), num_mel_bins=80, d_model=64, decoder_start_token_id=start, **sizes, **ends)
WhisperForConditionalGeneration(config).save_pretrained(folder)
