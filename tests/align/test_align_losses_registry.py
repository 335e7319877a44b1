"""The registry of losses, its page in the documentation, and options that do not go together."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from table_policy import small_table

from pope_fast.align.losses import LOSSES, Objective, Weighting, get_loss, pope_loss, pope_statistics, welfare
from pope_fast.errors import PopeError, SchemaError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "losses.md"


def test_every_loss_says_what_it_is() -> None:
    for name, spec in LOSSES.items():
        assert spec.name == name
        text = inspect.getdoc(spec.function) or ""
        assert "Source:" in text, name
        assert "loss" in spec.formula or "-" in spec.formula or "(" in spec.formula
        assert re.search(r"\d{4}", spec.source), name
        assert spec.options, name


def test_the_page_lists_every_loss_as_the_registry_has_it() -> None:
    section = PAGE.read_text(encoding="utf-8").split("\n## ")[1]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.M))
    assert list(rows) == list(LOSSES)
    for name, spec in LOSSES.items():
        formula, source, needs, additive = (cell.strip() for cell in rows[name].split(" | "))
        assert formula == f"`{spec.formula}`".replace("|", "\\|"), name
        assert source == spec.source, name
        assert needs == (", ".join(sorted(spec.needs)) or "-"), name
        assert additive == ("yes" if spec.additive else "no"), name


def test_the_page_names_the_defaults_that_are() -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = ('`truncation="clip"`', "`clip=2.0`", '`taper="none"`', '`kl="forward"`', '`measure="h_m"`', "`order=3`")
    for line in (*named, "`beta=0.05`"):
        assert line in text
    objective = Objective()
    weighting = objective.weighting
    assert (weighting.truncation, weighting.clip, weighting.taper) == ("clip", 2.0, "none")
    assert (objective.diversity.measure, objective.diversity.order) == ("h_m", 3)
    assert (objective.kl, objective.beta) == ("forward", 0.05)


def test_lookup() -> None:
    assert get_loss("pope", objective=None, form="direct").function is pope_loss
    with pytest.raises(PopeError, match="no loss 'ppo'; there are: pope"):
        get_loss("ppo")
    with pytest.raises(PopeError, match="no option 'gamma'"):
        get_loss("dpo", gamma=1)


def test_needs_are_checked_with_a_remedy() -> None:
    single = small_table().batch([0, 1], [[0], [1]], cluster=None)
    for name, column in (
        ("darling", "cluster"),
        ("cispo", "prompt"),
        ("gspo", "num_tokens"),
        ("token_ratio", "token_logprobs"),
    ):
        with pytest.raises(SchemaError, match="Remedy") as caught:
            LOSSES[name].check(single)
        assert caught.value.column == column
    LOSSES["rwr"].check(single)


def test_options_that_do_not_go_together() -> None:
    batch = small_table().batch([0, 1], [[0, 1, 2, 1], [0, 1, 1, 2]])
    free = Objective(diversity_weight=0.0)
    for call, message in (
        (lambda: pope_loss(batch, free, form="both"), "form is"),  # type: ignore[arg-type]
        (lambda: pope_loss(batch, Objective(weighting=Weighting(taper="topr")), form="direct"), "taper"),
        (lambda: pope_loss(batch, Objective(weighting=Weighting(level="token")), form="direct"), "weights of tokens"),
        (lambda: pope_loss(batch, Objective(pessimism=1.0, reward_range=(0, 1))), "form='direct'"),
        (lambda: pope_loss(batch, free, reference=torch.ones(2)), "without diversity"),
        (lambda: pope_loss(batch, reference=torch.zeros(2)), "must be positive"),
        (lambda: pope_loss(batch, free, baseline="value"), "needs V"),
        (lambda: pope_loss(batch, Objective(welfare="nash")), "group"),
        (lambda: Objective(pessimism=1.0), "reward_range"),
        (lambda: Objective(kl="js"), "kl must be one of"),  # type: ignore[arg-type]
        (lambda: Objective(beta=-1.0), "beta"),
        (lambda: Objective(group_shares=(1.0, 0.0)), "group_shares"),
    ):
        with pytest.raises(PopeError, match=message):
            call()
    low = Objective(pessimism=1.0, reward_range=(0.0, 0.01), diversity_weight=0.0)
    with pytest.raises(SchemaError, match="outside reward_range"):
        pope_statistics(batch, low)


def test_welfare_functions() -> None:
    values = torch.tensor([0.2, 0.8], dtype=torch.float64)
    assert float(welfare(values)) == pytest.approx(0.5)
    assert float(welfare(values, "nash", floor=1e-12)) == pytest.approx(0.4)
    assert float(welfare(values, "softmin", temperature=1e-3)) == pytest.approx(0.2, abs=1e-3)
    assert float(welfare(values, "softmin", temperature=1e3)) == pytest.approx(0.5, abs=1e-3)
    assert float(welfare(values, "mean", weights=torch.tensor([3.0, 1.0], dtype=torch.float64))) == pytest.approx(0.35)
    with pytest.raises(PopeError, match="above 0"):
        welfare(values - 0.5, "nash")


def test_the_package_is_imported_without_torch_until_losses_are() -> None:
    code = "import sys, pope_fast.align; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    code = (
        "import sys\nsys.modules['torch'] = None\ntry: import pope_fast.align.losses\nexcept Exception as e: print(e)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    assert "pip install 'pope_fast[torch]'" in shown
