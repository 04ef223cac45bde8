"""Masked batches: 15 % of the tokens, 80/10/10, the same for a step at every call."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lutcc.data.text_bpe import MASK, SPECIAL, START
from lutcc.errors import InputError
from lutcc.train import MaskedBatches

VOCABULARY = 500


def rows(count: int, length: int) -> np.ndarray:
    tokens = np.random.default_rng(1).integers(len(SPECIAL), VOCABULARY, (count, length))
    tokens[:, 0] = START
    return tokens.astype(np.int32)


def batches(sequences: np.ndarray, *, batch_size: int = 8, seed: int = 0) -> MaskedBatches:
    return MaskedBatches(sequences, batch_size=batch_size, vocabulary=VOCABULARY, seed=seed)


def test_shares_of_masks_other_tokens_and_tokens_left():
    sequences = rows(400, 101)
    batch = batches(sequences, batch_size=400).at(0)
    places = batch.places.numpy().reshape(400, -1)
    assert places.shape[1] == 15
    assert len(np.unique(places)) == places.size
    assert not (places % 101 == 0).any()  # the start is never masked
    assert (places // 101 == np.arange(400)[:, None]).all()
    shown = batch.ids.flatten()[batch.places].numpy()
    labels = batch.labels.numpy()
    masked, kept = (shown == MASK).mean(), (shown == labels).mean()
    assert masked == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1, abs=0.015)
    # What is not to be predicted is shown as it is.
    before = np.full(400 * 101, -1)
    before[batch.places.numpy()] = labels
    untouched = before < 0
    seen = batch.ids.flatten().numpy()
    before[untouched] = seen[untouched]
    restored = {tuple(row) for row in before.reshape(400, 101)}
    assert restored == {tuple(row) for row in sequences}


def test_every_place_is_masked_as_often():
    counts = np.zeros(21)
    many = batches(rows(64, 21), batch_size=64)
    for step in range(200):
        counts += np.bincount(many.at(step).places.numpy() % 21, minlength=21)
    assert counts[0] == 0
    expected = 200 * 64 * 3 / 20
    assert np.abs(counts[1:] / expected - 1).max() < 0.1


def test_a_step_is_the_same_at_every_call_and_in_every_order():
    first, second = batches(rows(40, 20)), batches(rows(40, 20))
    ahead = [first.at(step) for step in range(12)]
    for step in (11, 3, 7, 0):
        again = second.at(step)
        assert torch.equal(again.ids, ahead[step].ids)
        assert torch.equal(again.places, ahead[step].places)
        assert torch.equal(again.labels, ahead[step].labels)
    other = batches(rows(40, 20), seed=1).at(0)
    assert not torch.equal(other.ids, ahead[0].ids)


def test_an_epoch_shows_each_sequence_once_and_the_next_masks_anew():
    sequences = np.repeat(np.arange(100, 140)[:, None], 20, axis=1)  # rows told apart by any token
    sequences[:, 0] = START
    some = batches(sequences)
    assert some.per_epoch == 5
    epochs = [
        [label for step in range(5 * e, 5 * e + 5) for label in some.at(step).labels.tolist()]
        for e in range(2)
    ]
    for labels in epochs:
        assert {labels.count(token) for token in range(100, 140)} == {some.masked}
    assert epochs[0] != epochs[1]


def test_validation_is_fixed_and_apart_from_training():
    some = batches(rows(40, 20))
    first, second = some.fixed(20), some.fixed(20)
    assert [len(batch.ids) for batch in first] == [8, 8, 4]
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first, second, strict=True))


def test_too_few_sequences_and_a_wrong_vocabulary():
    with pytest.raises(InputError, match="3 sequences do not fill a batch of 8"):
        batches(rows(3, 20))
    with pytest.raises(InputError, match="vocabulary=10 is below 259"):
        MaskedBatches(rows(8, 20), batch_size=8, vocabulary=10, seed=0)
