"""How alike two texts are: ROUGE-L and BLEU, in scripts with and without spaces between words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_studio.measuring.matching import composed
from lora_studio.measuring.measurements import Compared
from lora_studio.measuring.statistics import Rows, interval

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

EAST_ASIAN = (
    "\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
)
PIECE = re.compile(f"[{EAST_ASIAN}]|[^\\W{EAST_ASIAN}]+")
OF_EAST_ASIA = re.compile(f"[{EAST_ASIAN}]")
LETTER = re.compile(r"[^\W\d_]")


class Words:
    """Parts a text for ROUGE: words without case, and each character of East Asian scripts.

    The library's own tokenizer throws away all that is not ASCII. A Korean word carries its
    particles, so whole words would hardly ever be equal; a syllable is what its readers count in.
    """

    def tokenize(self, text: str) -> list[str]:
        """Return the parts of a text."""
        return PIECE.findall(composed(text).casefold())


@dataclass(frozen=True, slots=True)
class Bleu:
    """BLEU over all rows."""

    score: Compared
    """0 to 100."""
    signature: str
    """How it was computed."""


def rouge_l(answer: str, reference: str) -> float:
    """Return the F-measure of the longest common subsequence of words, 0 to 1.

    (Lin 2004, W04-1013; computed by Google's rouge-score.)
    """
    return float(_rouge().score(reference, answer)["rougeL"].fmeasure)


def bleu(base: Sequence[str], adapter: Sequence[str], references: Sequence[str]) -> Bleu | None:
    """Compare corpus BLEU of answers, computed by sacreBLEU (Post 2018, arXiv 1804.08771).

    Words are parted as WMT does (`13a`); where most letters of the references are East Asian,
    each character counts as a word (`char`): it needs no dictionary, which `ko-mecab` would. The
    interval is that of `statistics.interval`, BLEU computed anew from the counts of the rows drawn.

    Returns:
        None where no reference has four words: BLEU counts runs of up to four, and would call
        even the same answers 0.
    """
    from sacrebleu.metrics.bleu import BLEU

    known = [composed(reference) for reference in references]
    words = "char" if is_east_asian(known) else "13a"
    metric, of_a_row = BLEU(tokenize=words), BLEU(tokenize=words, effective_order=True)
    longest = max((len(metric.tokenizer(reference).split()) for reference in known), default=0)
    if longest < metric.max_ngram_order:
        return None
    sides = [[composed(answer) for answer in answers] for answers in (base, adapter)]
    before, after = (float(metric.corpus_score(side, [known]).score) for side in sides)
    first, second = (_counts(of_a_row, side, known) for side in sides)
    low = high = None
    if not np.array_equal(first, second):
        low, high = interval(
            len(known), lambda rows: _score(metric, second[rows]) - _score(metric, first[rows])
        )
    compared = Compared(base=before, adapter=after, low=low, high=high)
    return Bleu(compared, str(metric.get_signature()))


def _counts(metric: BLEU, answers: Sequence[str], references: Sequence[str]) -> Rows:
    """Return what BLEU is made of for each row: right n-grams, all n-grams, both lengths."""
    pairs = zip(answers, references, strict=True)
    found = [metric.sentence_score(answer, [reference]) for answer, reference in pairs]
    return np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in found])


def _score(metric: BLEU, counts: Rows) -> float:
    """Return corpus BLEU of the rows with these counts."""
    *ngrams, written, wanted = counts.sum(axis=0).tolist()
    order = metric.max_ngram_order
    right, every = ngrams[:order], ngrams[order:]
    return float(
        metric.compute_bleu(right, every, written, wanted, smooth_method=metric.smooth_method).score
    )


def is_east_asian(texts: Sequence[str]) -> bool:
    """Tell whether more than half of the letters are Korean, Chinese or Japanese."""
    letters = east_asian = 0
    for text in texts:
        letters += len(LETTER.findall(text))
        east_asian += len(OF_EAST_ASIA.findall(text))
    return 2 * east_asian > letters


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=Words())
