"""Judges that training never sees, behind one protocol, and the statistics of their verdicts.

- protocol.py: `Judge`, what each of them promises; `Contest`, `Verdict`, `Cost`, `win_rate`
- numbers.py: `ScoreJudge` and `MarginJudge`, judges made of a function
- formulas.py, toxicity.py: gold scorer, edit distance, toxicity; fluency.py and joint.py: ParaDetox's metric
- reward_model.py, llm.py, people.py: what their names say; choice.py makes the one that settings.py describes
- agreement.py: how far judges agree
- statistics.py: win, lose, Δ and means with their bootstrap intervals

The paper's judges are GPT-4, a DeBERTa reward model and people. Importing this needs no torch.
"""

from training.judges.formulas import edit_distance, edit_judge, gold_judge, nearest_distance, toxicity_judge
from training.judges.numbers import MarginJudge, ScoreJudge
from training.judges.protocol import (
    Contest,
    Cost,
    Judge,
    Judged,
    Verdict,
    contests,
    settings_hash,
    win_rate,
)
from training.judges.statistics import Mean, WinRate, bootstrap_mean, compare, paired_bootstrap
from training.judges.toxicity import JudgeQuality, ToxicityJudge, plain_words

__all__ = [
    "Contest",
    "Cost",
    "Judge",
    "JudgeQuality",
    "Judged",
    "MarginJudge",
    "Mean",
    "ScoreJudge",
    "ToxicityJudge",
    "Verdict",
    "WinRate",
    "bootstrap_mean",
    "compare",
    "contests",
    "edit_distance",
    "edit_judge",
    "gold_judge",
    "nearest_distance",
    "paired_bootstrap",
    "plain_words",
    "settings_hash",
    "toxicity_judge",
    "win_rate",
]
