"""Words of the text world: topics, ways to ask, perspectives in four wordings each, polite and curt styles."""

from __future__ import annotations

#: Domain -> its topics, each a single word. Tastes differ by domain.
TOPICS: dict[str, tuple[str, ...]] = {
    "transport": ("parking", "traffic", "cycling", "buses", "trains", "roads", "bridges", "taxis"),
    "nature": ("parks", "rivers", "trees", "waste", "noise", "smog", "gardens", "beaches"),
    "living": ("housing", "rents", "heating", "water", "lighting", "playgrounds", "elevators", "benches"),
    "learning": ("schools", "libraries", "museums", "theaters", "sports", "music", "kindergartens", "festivals"),
    "services": ("hospitals", "pharmacies", "markets", "shops", "tourism", "internet", "policing", "elections"),
}

#: Ways to ask for an opinion. The topic comes last: a small model finds it there.
QUESTIONS: tuple[str, ...] = (
    "what should the city do about {topic}?",
    "how should we deal with {topic}?",
    "what is the best plan for {topic}?",
    "which policy would you choose for {topic}?",
    "do you have an idea for {topic}?",
    "what would improve {topic}?",
)

#: Perspective -> four wordings. Some share words within a perspective, some do not; some name the topic.
PERSPECTIVES: dict[str, tuple[str, ...]] = {
    "spend": (
        "spend more public money on {topic}",
        "raise taxes and fund {topic} properly",
        "the budget should pay for it in full",
        "invest more public money there",
    ),
    "market": (
        "let private firms run {topic}",
        "open it to private firms and competition",
        "the market will solve {topic} cheaply",
        "sell it to companies that know how",
    ),
    "ask": (
        "ask the residents what they want",
        "hold a vote of the residents on {topic}",
        "the people nearby should decide",
        "let citizens choose in open meetings",
    ),
    "rules": (
        "make strict rules for {topic}",
        "enforce strict rules and fine offenders",
        "regulate {topic} much harder",
        "send inspectors to punish those who cheat",
    ),
    "green": (
        "put nature and clean air first",
        "plant more and protect nature around {topic}",
        "cut pollution from {topic}",
        "think of the climate above all",
    ),
    "technology": (
        "use smart sensors and software for {topic}",
        "build an app with smart software",
        "let data and computers manage {topic}",
        "automate it with new machines",
    ),
    "wait": (
        "leave {topic} as it is",
        "do nothing and leave it alone",
        "{topic} is fine already",
        "there is no need to change anything",
    ),
    "fairness": (
        "help poor families with {topic} first",
        "make it free for poor families",
        "support those with low income",
        "give the weakest a fair share of {topic}",
    ),
}

#: Opening -> how much everybody likes it.
OPENINGS: tuple[tuple[str, float], ...] = (("in my view, ", 0.5), ("", 0.0), ("obviously, ", -0.5))

#: Ending -> how much everybody likes it.
ENDINGS: tuple[tuple[str, float], ...] = (
    (", because it works well elsewhere.", 0.75),
    (".", -0.25),
    (" and that is it.", -0.5),
)

#: Names of the annotator groups, with their shares of the population.
GROUPS: tuple[tuple[str, float], ...] = (
    ("commuters", 0.4),
    ("parents", 0.3),
    ("students", 0.2),
    ("retirees", 0.1),
)
