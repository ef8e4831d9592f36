"""How often one contender wins against another, and how sure that is."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lora_studio.judging.contenders import BASE, Contender
from lora_studio.judging.store import Counted, VoteStore
from lora_studio.wording import say

Z = 1.959964
"""Standard normal quantile of 0.975: an interval of 95 %."""
ALIKE = (0.4, 0.6)
"""An interval within these bounds says that the two win about as often."""

SHORT = 6
"""So many characters of a hash tell two of a name apart."""

Standing = Literal["wins", "alike", "unknown"]
Group = tuple[str, ...]
"""The first fields of `Counted`: a base, its precision, and two contenders with their weights."""


def wilson(score: float, votes: int) -> tuple[float, float]:
    """Return the bounds of Wilson's score interval for a share, 95 %.

        centre ± half, divided by 1 + z²/n, where with the share p = score/n
        centre = p + z²/2n,  half = z·√(p(1−p)/n + z²/4n²)

    (E. B. Wilson, Journal of the American Statistical Association 22 (1927), 209–212; recommended
    for small n by Brown, Cai and DasGupta, Statistical Science 16 (2001), 101–133.) With ties as
    half a win the variance of a vote is less than p(1−p), so the interval is, if anything, wide.

    Args:
        score: Wins, a tie counted as half a one.
        votes: Votes, at least 1.
    """
    share, inverse = score / votes, Z * Z / votes
    centre = share + inverse / 2
    half = Z * math.sqrt(share * (1 - share) / votes + inverse / (4 * votes))
    scale = 1 + inverse
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Votes on two contenders, as one of them sees them."""

    wins: int
    losses: int
    ties: int
    """Both good, or both bad: half a win for each."""

    @property
    def votes(self) -> int:
        """How many votes said something about the two."""
        return self.wins + self.losses + self.ties

    @property
    def rate(self) -> float:
        """Wins and half of the ties, by votes; 0 to 1."""
        return self._score / self.votes

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the rate's 95 % interval."""
        return wilson(self._score, self.votes)

    @property
    def turned(self) -> Tally:
        """The same as the other one sees it."""
        return Tally(wins=self.losses, losses=self.wins, ties=self.ties)

    @property
    def shares(self) -> dict[str, Any]:
        """What sentences say of it: votes, rate and bounds."""
        low, high = self.interval
        shares = {"rate": f"{self.rate:.0%}", "low": f"{low:.0%}", "high": f"{high:.0%}"}
        return {"votes": self.votes, **shares}

    @property
    def _score(self) -> float:
        return self.wins + self.ties / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A contender, and the weights with which it answered."""

    contender: Contender
    weights: Mapping[str, str]
    """As in `votes.Said`."""
    last: str = ""
    """When it was last voted on, where other weights of that name were too; else empty."""

    def short(self, language: str) -> str:
        """Return what it is called, whatever its weights."""
        key = self.contender.key
        return say("judging.base", language) if key == BASE else key

    def named(self, language: str) -> str:
        """Return what it is called, by its weights too where the name is not enough."""
        key = self.short(language)
        if not self.last:
            return key
        if not self.weights:
            return say("judging.older_weights", language, name=key)
        marks = ", ".join(digest[:SHORT] for digest in self.weights.values())
        return say("judging.of_weights", language, name=key, weights=marks, date=self.last[:10])


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """How two contenders on one base did against each other."""

    base: str
    left: Side
    """The one that wins, as far as the interval tells; else any but the base."""
    right: Side
    all: Tally
    """Votes as the left one sees them,"""
    blind: Tally
    """and of them those that were cast while names were hidden."""
    standing: Standing
    """Whether the left one wins more often; or neither, or there are too few votes to say."""
    precision: str = ""
    """What the base was held in, where it was voted on in others too; else empty."""

    def say(self, language: str = "en") -> str:
        """Return who wins against whom, as a sentence."""
        left, right = self.left.named(language), self.right.named(language)
        if self.standing == "wins":
            said = say("judging.wins", language, winner=left, loser=right, **self.all.shares)
        else:
            key = "judging.alike" if self.standing == "alike" else "judging.unknown"
            said = say(key, language, left=left, right=right, **self.all.shares)
        if not self.precision:
            return said
        return say("judging.in_precision", language, said=said, precision=self.precision)

    def say_blind(self, language: str = "en") -> str:
        """Return what blind votes alone say, as a sentence; empty where all are, or none is."""
        if self.blind.votes in (0, self.all.votes):
            return ""
        left = self.left.short(language)
        return say("judging.blind_alone", language, left=left, **self.blind.shares)


class Namesakes:
    """Which names and bases in some votes stood for more than one thing.

    Args:
        rows: The votes.
    """

    def __init__(self, rows: Iterable[Counted]) -> None:
        self._weights: dict[str, set[str]] = {}
        self._precisions: dict[str, set[str]] = {}
        self._last: dict[tuple[str, str], str] = {}
        for row in rows:
            self._precisions.setdefault(row.base, set()).add(row.precision)
            for settings, weights in ((row.one, row.one_weights), (row.other, row.other_weights)):
                known = json.loads(weights)
                for name in _contender(settings).names:
                    self._weights.setdefault(name, set()).add(known.get(name, ""))
                last = self._last.get((settings, weights), "")
                self._last[settings, weights] = max(last, row.last)

    def side(self, settings: str, weights: str) -> Side:
        """Return a contender with its weights, both as they are kept."""
        contender = _contender(settings)
        is_alone = all(len(self._weights[name]) == 1 for name in contender.names)
        return Side(
            contender=contender,
            weights=json.loads(weights),
            last="" if is_alone else self._last[settings, weights],
        )

    def precision(self, base: str, precision: str) -> str:
        """Return a precision where it tells two apart; else nothing."""
        return precision if len(self._precisions[base] - {""}) > 1 else ""


def win_rates(store: VoteStore, base: str | None = None) -> list[WinRate]:
    """Return how any two contenders do against each other, the most voted on first.

    Where one of more than two answers was best, it won against each of the others; of those among
    themselves nothing is known. A name that stood for other weights is another contender then, and
    a base in another precision another base.

    Args:
        store: The votes; those that `VoteStore.counted` leaves out are not counted.
        base: Only contenders on this base model; None takes all.
    """
    rows = [row for row in store.counted() if base in (None, row.base)]
    namesakes = Namesakes(rows)
    counts: dict[Group, tuple[Counter[str], Counter[str]]] = {}
    for row in rows:
        everything, blind = counts.setdefault(row[:6], (Counter(), Counter()))
        everything[row.winner] += row.votes
        if row.is_blind:
            blind[row.winner] += row.votes
    rates = [_win_rate(group, *count, namesakes) for group, count in counts.items()]
    return sorted(rates, key=lambda rate: -rate.all.votes)


def _win_rate(
    group: Group, everything: Counter[str], blind: Counter[str], namesakes: Namesakes
) -> WinRate:
    """Measure two contenders; the one that wins stands on the left."""
    base, precision, *sides = group
    left, right = namesakes.side(*sides[:2]), namesakes.side(*sides[2:])
    tally, hidden = _tally(everything), _tally(blind)
    low, high = tally.interval
    if high < 0.5:
        left, right, tally, hidden = right, left, tally.turned, hidden.turned
        low, high = tally.interval
    is_narrow = low >= ALIKE[0] and high <= ALIKE[1]
    return WinRate(
        base=base,
        left=left,
        right=right,
        all=tally,
        blind=hidden,
        standing="wins" if low > 0.5 else "alike" if is_narrow else "unknown",
        precision=namesakes.precision(base, precision),
    )


def _tally(count: Counter[str]) -> Tally:
    return Tally(wins=count["one"], losses=count["other"], ties=count["tie"])


def _contender(settings: str) -> Contender:
    return Contender.from_dict(json.loads(settings))
