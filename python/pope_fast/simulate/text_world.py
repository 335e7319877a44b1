"""A world of texts with plural preferences: questions, perspectives in several wordings, groups that disagree.

Everything is exact: a policy that is given as a distribution over the menu of responses has its true utility, diversity
and welfare by summation, and so has a language model whose mass on the menu has been scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pope_fast.errors import PopeError
from pope_fast.simulate.exact import FloatArray, diversity_truth, policy_truth, sigmoid
from pope_fast.simulate.finite_world import FiniteWorld
from pope_fast.simulate.simulated_log import SimulatedLog, check_draws, check_size, labeled, make_table
from pope_fast.simulate.text_templates import ENDINGS, GROUPS, OPENINGS, PERSPECTIVES, QUESTIONS, TOPICS

__all__ = ["UNCLEAR", "Phrasing", "TextWorld"]

UNCLEAR = "unclear"
"""Name of the cluster of texts that express no perspective on the question that was asked."""

_WORDINGS = 4
_TASTE = 2.4  # logits between what a group favors and what it does not
_DOMAIN_TASTE = 0.8  # standard deviation of how much that depends on the domain, in logits


@dataclass(frozen=True, slots=True)
class Phrasing:
    """A way to put a perspective into words.

    Attributes
    ----------
    wording : int
        Which of the perspective's wordings.
    opening, ending : str
        What is put before and after it.
    quality : float
        How much everybody likes that, in logits of the upvote probability.
    """

    wording: int
    opening: str
    ending: str
    quality: float


class TextWorld:
    """Questions to a city, answers from several perspectives, and groups that prefer different ones.

    Every group favors two perspectives, more in some domains than in others; all of them like polite answers that give
    a reason. So there is a quality that everybody shares, and a disagreement that no single answer can settle.

    Parameters
    ----------
    seed : int
        Seed of the world: which questions, in what order, and the tastes.
    n_prompts : int
        Questions; at most 240.
    n_perspectives : int
        Perspectives on each question, 2 to 8. They mean the same in every question.
    n_phrasings : int
        Phrasings of a perspective, 1 to 36. Phrasing f is wording ``f % 4`` in style ``f // 4``; the first three styles
        are polite with a reason, plain, and curt.
    groups : mapping of name to share, optional
        The population; shares are normalized. By default four groups of 40, 30, 20 and 10 percent.
    unclear_upvote : float
        Upvote probability, in every group, of a text that expresses no perspective.

    Attributes
    ----------
    prompts : tuple of str
        The questions.
    topics, domains : tuple of str
        Topic and domain of each question.
    perspectives : tuple of str
        Names of the perspectives.
    groups : tuple of str
        Names of the groups.
    population : ndarray, shape (n_groups,)
        Their shares.
    phrasings : tuple of Phrasing
        The phrasings, the same for every perspective.
    upvote : ndarray, shape (n_prompts, n_perspectives, n_phrasings, n_groups)
        Exact probability that a member of a group upvotes a response.

    Raises
    ------
    PopeError
        If a size is out of its range or a share is not positive.

    Examples
    --------
    >>> world = TextWorld(n_prompts=8, n_phrasings=4)
    >>> text = world.response(0, perspective=2, phrasing=1)
    >>> world.parse(world.prompts[0], text)
    2
    """

    def __init__(
        self,
        seed: int = 0,
        n_prompts: int = 64,
        n_perspectives: int = 6,
        n_phrasings: int = 12,
        groups: Mapping[str, float] | None = None,
        *,
        unclear_upvote: float = 0.05,
    ) -> None:
        questions = [
            (domain, topic, form) for domain, topics in TOPICS.items() for topic in topics for form in QUESTIONS
        ]
        check_size(n_prompts=n_prompts, n_phrasings=n_phrasings)
        _check_at_most(n_prompts=(n_prompts, len(questions)), n_perspectives=(n_perspectives, len(PERSPECTIVES)))
        _check_at_most(n_phrasings=(n_phrasings, _WORDINGS * len(OPENINGS) * len(ENDINGS)))
        if n_perspectives < 2:
            raise PopeError(f"n_perspectives must be at least 2, got {n_perspectives}")
        if not 0.0 <= unclear_upvote <= 1.0:
            raise PopeError(f"unclear_upvote must be a probability, got {unclear_upvote}")
        population = dict(GROUPS if groups is None else groups)
        shares = np.array(list(population.values()), dtype=np.float64)
        if not len(shares) or not np.all(np.isfinite(shares) & (shares > 0)):
            raise PopeError("groups must be names with positive shares")
        rng = np.random.default_rng([seed, 5])
        chosen = [questions[i] for i in rng.permutation(len(questions))[:n_prompts]]
        self.seed = seed
        self.prompts = tuple(form.format(topic=topic) for _, topic, form in chosen)
        self.topics = tuple(topic for _, topic, _ in chosen)
        self.domains = tuple(domain for domain, _, _ in chosen)
        self.perspectives = tuple(PERSPECTIVES)[:n_perspectives]
        self.groups = tuple(population)
        self.population: FloatArray = shares / shares.sum()
        self.phrasings = tuple(_phrasing(f) for f in range(n_phrasings))
        self.unclear_upvote = float(unclear_upvote)
        self.upvote = self._upvote(rng)
        self._by_text: dict[str, dict[str, tuple[int, int]]] = {}
        self._row = {prompt: row for row, prompt in enumerate(self.prompts)}

    @property
    def n_prompts(self) -> int:
        """Number of questions."""
        return len(self.prompts)

    @property
    def n_perspectives(self) -> int:
        """Number of perspectives on each question."""
        return len(self.perspectives)

    @property
    def n_phrasings(self) -> int:
        """Number of phrasings of a perspective."""
        return len(self.phrasings)

    @property
    def cluster_names(self) -> tuple[str, ...]:
        """Names of the perspectives, and of what is none."""
        return (*self.perspectives, UNCLEAR)

    def _upvote(self, rng: np.random.Generator) -> FloatArray:
        n_groups, n = len(self.groups), self.n_perspectives
        # Neighboring groups share one of their two favorites, so that no perspective pleases everybody.
        favored = np.zeros((n_groups, n))
        for g in range(n_groups):
            favored[g, [g % n, (g + 1 + g // n) % n]] = (1.0, 0.6)
        by_domain = rng.normal(size=(len(TOPICS), n_groups, n)) * _DOMAIN_TASTE
        domain = [list(TOPICS).index(name) for name in self.domains]
        taste = _TASTE * (favored - 0.5)[None] + by_domain[domain]
        quality = np.array([phrasing.quality for phrasing in self.phrasings])
        logits = taste.transpose(0, 2, 1)[:, :, None, :] + quality[None, None, :, None]
        return sigmoid(logits)

    def response(self, prompt: int, perspective: int, phrasing: int) -> str:
        """Return the text of a response to the question with this index."""
        p = self.phrasings[phrasing]
        wording = PERSPECTIVES[self.perspectives[perspective]][p.wording]
        return f"{p.opening}{wording.format(topic=self.topics[prompt])}{p.ending}"

    def responses(self, prompt: int) -> list[str]:
        """Return the menu of a question: ``n_perspectives * n_phrasings`` texts, perspective by perspective."""
        return [
            self.response(prompt, perspective, phrasing)
            for perspective in range(self.n_perspectives)
            for phrasing in range(self.n_phrasings)
        ]

    def parse(self, prompt: int | str, text: str) -> int | None:
        """Return the perspective that a text expresses on a question; None if it expresses none of them."""
        found = self.parse_response(prompt, text)
        return None if found is None else found[0]

    def parse_response(self, prompt: int | str, text: str) -> tuple[int, int] | None:
        """Return the perspective and the phrasing of a text; None for a text that is not on the menu.

        Case, and white space at the ends, between words and before punctuation make no difference. A text about
        another topic is not on the menu.

        Raises
        ------
        PopeError
            If the world does not have the question.
        """
        topic = self.topics[self._index(prompt)]
        if topic not in self._by_text:
            row = self.topics.index(topic)
            pairs = [(c, f) for c in range(self.n_perspectives) for f in range(self.n_phrasings)]
            self._by_text[topic] = {_normalize(self.response(row, c, f)): (c, f) for c, f in pairs}
        return self._by_text[topic].get(_normalize(text))

    def upvote_probability(self, prompt: int | str, text: str) -> FloatArray:
        """Return the exact probability that a member of each group upvotes a text; shape (n_groups,)."""
        found = self.parse_response(prompt, text)
        if found is None:
            return np.full(len(self.groups), self.unclear_upvote)
        return np.asarray(self.upvote[self._index(prompt), found[0], found[1]])

    def _index(self, prompt: int | str) -> int:
        if isinstance(prompt, str):
            if prompt not in self._row:
                raise PopeError(f"this world has no question {prompt!r}")
            return self._row[prompt]
        if not 0 <= prompt < self.n_prompts:
            raise PopeError(f"this world has {self.n_prompts} questions, none with index {prompt}")
        return prompt

    def policy(self, perspectives: npt.ArrayLike | None = None, phrasings: npt.ArrayLike | None = None) -> FloatArray:
        """Return a policy that chooses a perspective, and independently of it a phrasing.

        Parameters
        ----------
        perspectives : array_like, shape (n_perspectives,) or (n_prompts, n_perspectives), optional
            Weights of the perspectives; equal by default.
        phrasings : array_like, shape (n_phrasings,), optional
            Weights of the phrasings; equal by default.

        Returns
        -------
        ndarray, shape (n_prompts, n_perspectives, n_phrasings)
            Probabilities; they sum to 1 in every question.

        Raises
        ------
        PopeError
            If there are not as many weights as there should be, one is negative, or they are all 0.
        """
        c = np.ones(self.n_perspectives) if perspectives is None else np.asarray(perspectives, dtype=np.float64)
        f = np.ones(self.n_phrasings) if phrasings is None else np.asarray(phrasings, dtype=np.float64)
        if c.shape not in ((self.n_perspectives,), (self.n_prompts, self.n_perspectives)):
            raise PopeError(f"weights of {self.n_perspectives} perspectives expected, got shape {c.shape}")
        if f.shape != (self.n_phrasings,):
            raise PopeError(f"weights of {self.n_phrasings} phrasings expected, got shape {f.shape}")
        for weights in (c, f):
            if not np.all(weights >= 0) or not np.all(weights.sum(axis=-1) > 0):
                raise PopeError("weights must not be negative, nor all 0")
        c = np.broadcast_to(c / c.sum(axis=-1, keepdims=True), (self.n_prompts, self.n_perspectives))
        return np.asarray(c[:, :, None] * (f / f.sum())[None, None, :], dtype=np.float64)

    def majority_policy(self, sharpness: float = 4.0) -> FloatArray:
        """Return a policy that serves the largest groups: perspectives by their mean upvotes, sharpened.

        Parameters
        ----------
        sharpness : float
            Probabilities are proportional to ``exp(sharpness * upvotes / spread)``, spread being the standard
            deviation of a question's perspectives.
        """
        liked = (self.upvote @ self.population).mean(axis=2)
        spread = liked.std(axis=1, keepdims=True)
        return self.policy(np.exp(sharpness * (liked - liked.max(axis=1, keepdims=True)) / np.maximum(spread, 1e-9)))

    def truth(self, policy: npt.ArrayLike, behavior: npt.ArrayLike | None = None, responses: int = 1) -> dict[str, Any]:
        """Return the exact truth of a policy, in the form of the other simulated logs' truth files.

        Parameters
        ----------
        policy : array_like, shape (n_prompts, n_perspectives, n_phrasings) or (n_prompts, n_menu)
            Probability of every response on the menu. What is missing from 1 is unclear text: it has
            ``unclear_upvote``, and is a cluster of its own.
        behavior : array_like, optional
            The logger, in the same form, for the divergences; ``policy`` itself by default. Unclear texts of the
            two policies count as one response.
        responses : int
            Logged responses per prompt, for the effective sample size.

        Returns
        -------
        dict
            See :func:`pope_fast.simulate.exact.policy_truth`; the utility is that of the whole population, and
            ``unclear`` the mass outside of the menu.

        Raises
        ------
        PopeError
            If the shape is not that of the menu, or the probabilities of a question sum to more than 1.
        """
        p = self._with_unclear(policy)
        q = p if behavior is None else self._with_unclear(behavior)
        reward = self.upvote.reshape(self.n_prompts, -1, len(self.groups))
        reward = np.concatenate([reward, np.full_like(reward[:, :1], self.unclear_upvote)], axis=1)
        by_group = np.einsum("xy,xyg->g", p, reward) / self.n_prompts
        with np.errstate(divide="ignore", invalid="ignore"):
            log_ratio = np.log(p) - np.log(q)
            forward, backward = (np.where(m > 0, m * log_ratio, 0.0) for m in (p, q))
            second = np.where(p > 0, p**2 / q, 0.0)
        return policy_truth(
            utility=float(by_group @ self.population),
            shares=self.shares(policy),
            kl_target_behavior=float(np.mean(np.sum(forward, axis=1))),
            kl_behavior_target=float(-np.mean(np.sum(backward, axis=1))),
            second_moment=float(np.mean(np.sum(second, axis=1))),
            responses=responses,
            groups=dict(zip(self.groups, by_group.tolist(), strict=True)),
            extra={"unclear": float(p[:, -1].mean())},
        )

    def shares(self, policy: npt.ArrayLike) -> FloatArray:
        """Return the mass of every perspective and, last, of unclear texts; shape (n_prompts, n_perspectives + 1)."""
        p = self._with_unclear(policy)
        by_perspective = p[:, :-1].reshape(self.n_prompts, self.n_perspectives, self.n_phrasings).sum(axis=2)
        return np.concatenate([by_perspective, p[:, -1:]], axis=1)

    def diversity(self, policy: npt.ArrayLike) -> dict[str, float]:
        """Return the exact diversity of a policy, with unclear texts as a cluster of their own."""
        return diversity_truth(self.shares(policy))

    def _with_unclear(self, policy: npt.ArrayLike) -> FloatArray:
        p = np.asarray(policy, dtype=np.float64)
        menu = self.n_perspectives * self.n_phrasings
        if p.shape not in ((self.n_prompts, self.n_perspectives, self.n_phrasings), (self.n_prompts, menu)):
            raise PopeError(f"probabilities of shape {(self.n_prompts, menu)} expected, got {p.shape}")
        p = p.reshape(self.n_prompts, menu)
        rest = 1.0 - p.sum(axis=1, keepdims=True)
        if not np.all(p >= 0) or np.any(rest < -1e-6):
            raise PopeError("probabilities must not be negative, nor sum to more than 1 in a question")
        # What float32 log-probs leave over is no unclear text.
        return np.concatenate([p, np.where(rest > 1e-12, rest, 0.0)], axis=1)

    def draw_groups(self, rng: np.random.Generator, n: int) -> npt.NDArray[np.int64]:
        """Draw the groups of n annotators from the population."""
        return rng.choice(len(self.groups), size=n, p=self.population)

    def log(
        self,
        behavior: npt.ArrayLike,
        targets: Mapping[str, npt.ArrayLike] | None = None,
        *,
        prompts: int = 500,
        responses: int = 8,
        seed: int = 0,
    ) -> SimulatedLog:
        """Simulate a log of texts, without any model: responses from a policy over the menu, one upvote or none each.

        Parameters
        ----------
        behavior : array_like, shape (n_prompts, n_perspectives, n_phrasings)
            The logger; its probabilities sum to 1.
        targets : mapping of name to array_like, optional
            Target policies, in the same form.
        prompts, responses, seed : int
            Logged prompts, drawn with replacement from the questions; responses to each; seed of the draws.

        Returns
        -------
        SimulatedLog
            Columns ``prompt_id``, ``prompt``, ``completion``, ``reward``, ``behavior_logprob``,
            ``target_logprob/NAME``, ``cluster`` (the perspective), ``phrasing`` and ``group``.

        Raises
        ------
        PopeError
            If a policy has mass outside of the menu.
        """
        check_draws(prompts, responses, seed)
        policies = {name: self._on_menu(p, name) for name, p in {"behavior": behavior, **(targets or {})}.items()}
        logger = policies["behavior"]
        menu = np.broadcast_to(
            np.repeat(np.arange(self.n_perspectives), self.n_phrasings),
            logger.shape,
        )
        by_group = self.upvote.reshape(*logger.shape, -1)
        finite = FiniteWorld(logger, {}, menu, by_group, self.groups)
        rng = np.random.default_rng([seed, 15])
        draws = finite.draw(rng, prompts, responses)
        group = self.draw_groups(rng, len(draws.response))
        upvotes = by_group[draws.prompt_type, draws.response, group]
        texts = [self.responses(x) for x in range(self.n_prompts)]
        columns: dict[str, Any] = {
            "prompt_id": draws.prompt_id,
            "prompt": labeled(draws.prompt_type, list(self.prompts)),
            "completion": np.array([texts[x][y] for x, y in zip(draws.prompt_type, draws.response, strict=True)]),
            "reward": rng.random(len(upvotes)) < upvotes,
            "behavior_logprob": finite.log_probability(logger, draws),
        }
        for name in targets or {}:
            columns[f"target_logprob/{name}"] = finite.log_probability(policies[name], draws)
        columns["cluster"] = labeled(draws.response // self.n_phrasings, list(self.perspectives))
        columns["phrasing"] = draws.response % self.n_phrasings
        columns["group"] = labeled(group, list(self.groups))
        truth = {
            "kind": "text",
            "seed": seed,
            "parameters": {
                "prompts": prompts,
                "responses": responses,
                "world_seed": self.seed,
                "n_prompts": self.n_prompts,
                "n_perspectives": self.n_perspectives,
                "n_phrasings": self.n_phrasings,
                "groups": dict(zip(self.groups, self.population.tolist(), strict=True)),
            },
            "reward_range": [0, 1],
            "policies": {name: self.truth(policies[name], logger, responses) for name in targets or {}},
            "behavior": self.truth(logger, None, responses),
        }
        return SimulatedLog(make_table(columns), truth)

    def _on_menu(self, policy: npt.ArrayLike, name: str) -> FloatArray:
        p = self._with_unclear(policy)
        if np.any(p[:, -1] > 1e-9):
            raise PopeError(f"policy {name!r} has mass outside of the menu; a log of texts is drawn from the menu")
        return p[:, :-1]


def _phrasing(index: int) -> Phrasing:
    wording, style = index % _WORDINGS, index // _WORDINGS
    # The first three styles go from the politest to the curtest; the others mix their openings and endings.
    opening = OPENINGS[style % len(OPENINGS)]
    ending = ENDINGS[(style + style // len(OPENINGS)) % len(ENDINGS)]
    return Phrasing(wording, opening[0], ending[0], opening[1] + ending[1])


def _normalize(text: str) -> str:
    words = " ".join(text.casefold().split())
    for mark in ",.":
        words = words.replace(f" {mark}", mark)
    return words


def _check_at_most(**sizes: tuple[int, int]) -> None:
    for name, (size, most) in sizes.items():
        if size > most:
            raise PopeError(f"{name} must be at most {most}, got {size}")
